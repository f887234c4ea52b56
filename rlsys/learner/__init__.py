"""The learner: groups of ranks that train the policy and the critic together, each around a DeepSpeed engine.

In the ranks' processes (Ray workers):
    rank             what all ranks share: process group, engine, checkpoints, microbatches, backward and step
    engine           the DeepSpeed engine: configuration, optimizer, schedule
    policy_rank      trains the policy: `update`
    policy_services  what the policy does for other roles: weights, adapter, reference, files
    critic_rank      estimates values and trains the critic
    rank_batch       one rank's data of one step
    loss_inputs      the tensors that a microbatch's loss is computed from
    token_records    log-probabilities from before the step, and tokens chosen among all of an update's
    setup            the ranks' part of the configuration

In the driver:
    rank_group       several ranks called together, and the division of a step among them
    policy_group     the policy's ranks
    critic_group     the critic's ranks
    learners         a step's update of both, and the coefficients that adapt between steps

Losses and advantages are in `algorithms`, models in `models`, channels to the engines in `weights`.
"""
