"""Which algorithms a run can carry out: what their parts need of each other and of the run."""

from __future__ import annotations

import inspect

from rlsys.algorithms import advantages, aggregation, corrections, kl, policy_losses
from rlsys.bounds import one_of
from rlsys.config import Config
from rlsys.errors import ConfigError


def check_algorithm(config: Config) -> None:
    """Raise ConfigError for an unknown part or option, and for parts that do not fit the run."""
    algorithm = config.algorithm
    advantages.registry.component(algorithm.advantage)
    policy_losses.registry.component(algorithm.policy_loss)
    aggregation.registry.component(algorithm.aggregation)
    kl.registry.get(algorithm.kl.name)
    for kind, node in ((policy_losses.registry, algorithm.policy_loss), (aggregation.registry, algorithm.aggregation)):
        options = {name: value for name, value in node.items() if name != "name"}
        kind.fact(str(node["name"]), "check", lambda **_: None)(**options)
    _check_estimator(config)
    _check_old_logprobs(config)
    _check_kl(config)
    _check_groups(config)


def _check_estimator(config: Config) -> None:
    node, samples = config.algorithm.advantage, config.train.samples_per_prompt
    name, fact = str(node["name"]), advantages.registry.fact
    needed = fact(name, "min_group_size", 1)
    if samples < needed:
        raise ConfigError(
            f"train.samples_per_prompt={samples}: the advantage estimator '{name}' compares the samples of a prompt "
            f"with each other and needs at least {needed}"
        )
    option = fact(name, "group_size_option", None)
    if option is None:
        return
    default = inspect.signature(advantages.registry.get(name)).parameters[option].default
    if not 1 <= node.get(option, default) < samples:
        raise ConfigError(
            f"algorithm.advantage.{option}={node.get(option, default)}: '{name}' compares draws of that many of a "
            f"prompt's samples; set it to at least 1 and less than train.samples_per_prompt={samples} (with all of "
            "them there is one draw, and nothing to compare), or raise that"
        )


def _check_old_logprobs(config: Config) -> None:
    train, algorithm = config.train, config.algorithm
    one_of("train.old_logprobs", train.old_logprobs, ("learner", "engine", "none"))
    updates = train.updates_per_step * train.minibatches_per_step
    if train.old_logprobs == "none" and updates > 1:
        raise ConfigError(
            f"train.old_logprobs=none takes the ratio to be 1, but a step makes {updates} updates "
            "(train.updates_per_step * train.minibatches_per_step) and after the first it is not; use learner or engine"
        )
    if train.minibatches_per_step > train.prompts_per_step:
        raise ConfigError(
            f"train.minibatches_per_step={train.minibatches_per_step} is more than train.prompts_per_step="
            f"{train.prompts_per_step}: a prompt's samples stay together"
        )
    for node in algorithm.corrections:
        corrections.registry.component(node)
        if train.old_logprobs == "engine" and corrections.registry.fact(str(node["name"]), "compares_old", False):
            raise ConfigError(
                f"algorithm.corrections: '{node['name']}' compares the learner's old log-probabilities with the "
                "engine's; with train.old_logprobs=engine they are the same and it does nothing. Use "
                "train.old_logprobs=learner"
            )


def _check_kl(config: Config) -> None:
    penalty, refresh = config.algorithm.kl, config.algorithm.refresh
    one_of("algorithm.kl.place", penalty.place, ("loss", "reward"))
    if penalty.unbiased and penalty.place == "reward":
        raise ConfigError(
            "algorithm.kl.unbiased=true weighs the KL in the loss by the ratio; set algorithm.kl.place=loss"
        )
    for key, wanted in (("algorithm.kl.target", penalty.target is not None), ("algorithm.refresh", refresh.every > 0)):
        if wanted and penalty.coef == 0:
            raise ConfigError(f"{key} needs a reference: set algorithm.kl.coef above 0 (0 starts none)")


def _check_groups(config: Config) -> None:
    rule = config.algorithm.groups
    one_of("algorithm.groups.zero_variance", rule.zero_variance, ("keep", "drop", "resample"))
    if rule.zero_variance != "keep" and config.train.samples_per_prompt < 2:
        raise ConfigError(
            f"algorithm.groups.zero_variance={rule.zero_variance} with train.samples_per_prompt=1: a group of one has "
            "no variance, so nothing would ever be trained; sample more, or keep"
        )
