"""Checks of the algorithm: its names and options, and its parts' requirements of each other and of the run."""

from __future__ import annotations

import inspect
import math

from rlsys.algorithms import advantages, aggregation, corrections, kl, policy_losses
from rlsys.algorithms.requirements import corrections_of, needs_critic
from rlsys.config.schema import Config
from rlsys.errors import ConfigError


def check_algorithm(config: Config) -> None:
    """Raise ConfigError for an unknown part or option, and for parts that do not fit each other or the run."""
    algorithm = config.algorithm
    advantages.registry.component(algorithm.advantage)
    policy_losses.registry.component(algorithm.policy_loss)
    aggregation.registry.component(algorithm.aggregation)
    kl.registry.get(algorithm.kl.name)
    # Some functions relate their own options, such as dual_clip > 1 + clip_high; they state that check as a fact.
    for kind, node in ((policy_losses.registry, algorithm.policy_loss), (aggregation.registry, algorithm.aggregation)):
        options = {name: value for name, value in node.items() if name != "name"}
        kind.fact(str(node["name"]), "check", lambda **_: None)(**options)
    _check_estimator(config)
    _check_critic(config)
    _check_old_logprobs(config)
    _check_updates(config)
    _check_corrections(config)
    _check_kl(config)
    _check_groups(config)


def _check_estimator(config: Config) -> None:
    """Raise ConfigError unless a group has enough samples for the advantage estimator."""
    node, samples = config.algorithm.advantage, config.train.samples_per_prompt
    name, fact = str(node["name"]), advantages.registry.fact
    needed = fact(name, "min_group_size", 1)
    if samples < needed:
        raise ConfigError(
            f"train.samples_per_prompt={samples}: the advantage estimator '{name}' compares the samples of a prompt "
            f"with each other and needs at least {needed}"
        )
    # Pass@k compares subsets of k samples: k is an option of the function, and it must leave several subsets.
    option = fact(name, "group_size_option", None)
    if option is None:
        return
    default = inspect.signature(advantages.registry.get(name)).parameters[option].default
    size = node.get(option, default)
    if not 1 <= size < samples:
        raise ConfigError(
            f"algorithm.advantage.{option}={size}: '{name}' compares subsets of {size} of a prompt's "
            f"train.samples_per_prompt={samples} samples: set it to at least 1 and less than {samples} (with all of "
            "them there is a single subset and nothing to compare), or raise train.samples_per_prompt"
        )


def _check_critic(config: Config) -> None:
    # The policy waits while the critic warms up, so at least one step must be left for it.
    warmup, steps = config.train.critic_warmup_steps, config.train.num_steps
    if warmup > 0 and not needs_critic(config):
        raise ConfigError(
            f"train.critic_warmup_steps={warmup} trains a critic, and the advantage estimator "
            f"'{config.algorithm.advantage['name']}' has none: set it to 0, or use algorithm=ppo"
        )
    if needs_critic(config) and warmup >= steps:
        raise ConfigError(
            f"train.critic_warmup_steps={warmup} is not less than train.num_steps={steps}, so the policy would never "
            "be trained: lower the former or raise the latter"
        )


def _check_old_logprobs(config: Config) -> None:
    """Raise ConfigError when `train.old_logprobs=none` sets a ratio to 1 that is not 1."""
    train = config.train
    if train.old_logprobs != "none":
        return
    updates = _updates_per_step(config)
    # The first update moves the policy, so from the second on the ratio is no longer 1.
    if updates > 1:
        raise ConfigError(
            f"train.old_logprobs=none sets the ratio to 1, but with {updates} updates per step "
            "(train.updates_per_step * train.minibatches_per_step) it is 1 in the first only: use learner or engine, "
            "or one update per step"
        )
    # The samples of an older policy need a weight: from the ratio, or from a correction.
    if train.max_staleness > 0 and not corrections_of(config):
        raise ConfigError(
            f"train.old_logprobs=none sets the ratio to 1, but with train.max_staleness={train.max_staleness} an "
            "older policy has sampled: use learner or engine, or name algorithm.corrections"
        )


def _check_updates(config: Config) -> None:
    """Raise ConfigError for more minibatches than prompts, or fewer updates than the policy loss needs."""
    train, loss = config.train, str(config.algorithm.policy_loss["name"])
    # Minibatches divide the prompts, not the trajectories: advantages of a group belong together.
    if train.minibatches_per_step > train.prompts_per_step:
        raise ConfigError(
            f"train.minibatches_per_step={train.minibatches_per_step} is more than train.prompts_per_step="
            f"{train.prompts_per_step}, but a prompt's samples stay in one minibatch: lower the former or raise the "
            "latter"
        )
    needed = policy_losses.registry.fact(loss, "min_updates", 1)
    # With the engine's log-probabilities the ratio differs from 1 in the first update already.
    if _updates_per_step(config) < needed and train.old_logprobs != "engine":
        raise ConfigError(
            f"policy loss '{loss}' penalises drift since the start of the step, so it needs at least {needed} updates "
            f"per step: set train.updates_per_step or train.minibatches_per_step to {needed} or more"
        )


def _check_corrections(config: Config) -> None:
    """Raise ConfigError for an unknown correction, one without effect, or several that weigh by the same ratio."""
    fact, nodes = corrections.registry.fact, corrections_of(config)
    for node in nodes:
        corrections.registry.component(node)
        if config.train.old_logprobs == "engine" and fact(str(node["name"]), "compares_old", False):
            raise ConfigError(
                f"algorithm.corrections: '{node['name']}' compares the learner's old log-probabilities with the "
                "engine's, but with train.old_logprobs=engine they are the same and it has no effect: set "
                "train.old_logprobs=learner, or remove the correction"
            )
    # A correction with weigh=false only masks; the others multiply the loss by the same ratio.
    weighing = [str(n["name"]) for n in nodes if fact(str(n["name"]), "weighs", False) and n.get("weigh", True)]
    if len(weighing) > 1:
        raise ConfigError(
            f"algorithm.corrections: {' and '.join(weighing)} each weigh by the ratio, which would then count "
            f"{len(weighing)} times: keep one, and give a 'mask' weigh=false so that it only decides"
        )


def _check_kl(config: Config) -> None:
    penalty, refresh = config.algorithm.kl, config.algorithm.refresh
    # `unbiased` multiplies the estimate in the loss by the ratio; a reward has no ratio.
    if penalty.unbiased and penalty.apply_to == "reward":
        raise ConfigError(
            "algorithm.kl.unbiased=true weighs the KL in the loss by the ratio, but algorithm.kl.apply_to=reward: set "
            "algorithm.kl.apply_to=loss, or unbiased=false"
        )
    estimator = str(config.algorithm.advantage["name"])
    # maxrl divides by the success rate, grpo_passk compares with a threshold, gpg counts groups of equal rewards, and
    # gdpo works on the parts of rewards: a penalty subtracted first would change what each of them sees.
    raw = advantages.registry.fact(estimator, "raw_rewards", False)
    if raw and penalty.apply_to == "reward" and penalty.coef > 0:
        raise ConfigError(
            f"algorithm.kl.apply_to=reward: the advantage estimator '{estimator}' needs the rewards as they are, and "
            "subtracting a penalty would change their meaning: set algorithm.kl.apply_to=loss"
        )
    # k1 is log(p / q): its gradient is that of log p alone, whose expectation under p is 0.
    if penalty.name == "k1" and penalty.apply_to == "loss" and penalty.coef > 0 and not penalty.unbiased:
        raise ConfigError(
            "algorithm.kl.name=k1 in the loss has a gradient of expectation 0: set algorithm.kl.apply_to=reward, "
            "algorithm.kl.unbiased=true, or another estimator (k2, k3, abs)"
        )
    for key, wanted in (("algorithm.kl.target", penalty.target is not None), ("algorithm.refresh", refresh.every > 0)):
        if wanted and penalty.coef == 0:
            raise ConfigError(f"{key} needs a reference, and algorithm.kl.coef=0 starts none: set it above 0")


def _check_groups(config: Config) -> None:
    # Only estimators that compare the samples of a group learn nothing when their rewards are equal.
    rule = config.algorithm.groups.zero_variance
    estimator = str(config.algorithm.advantage["name"])
    known = estimator in advantages.registry.names()  # outside code states no facts
    if rule != "keep" and known and advantages.registry.fact(estimator, "min_group_size", 1) < 2:
        raise ConfigError(
            f"algorithm.groups.zero_variance={rule}: estimator '{estimator}' learns from groups with equal rewards "
            "too: set algorithm.groups.zero_variance=keep"
        )
    groups = config.algorithm.groups
    if rule != "resample" and groups.oversample != 1:
        raise ConfigError(
            f"algorithm.groups.oversample={groups.oversample:g} replaces rejected groups, and with "
            f"algorithm.groups.zero_variance={rule} none is replaced: set oversample=1, or zero_variance=resample"
        )
    if rule == "resample" and groups.oversample > groups.max_tries:
        raise ConfigError(
            f"algorithm.groups.oversample={groups.oversample:g} draws more prompts at once than "
            f"algorithm.groups.max_tries={groups.max_tries} allows in all: raise max_tries to "
            f"{math.ceil(groups.oversample)} or more, or lower oversample"
        )


def _updates_per_step(config: Config) -> int:
    return config.train.updates_per_step * config.train.minibatches_per_step
