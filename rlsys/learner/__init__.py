"""The learner group: W ranks of one DeepSpeed engine that update the policy together."""
