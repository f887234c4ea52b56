"""Which algorithms a run can carry out: what their parts need of each other and of the run."""

from __future__ import annotations

import inspect

from rlsys.algorithms import advantages, aggregation, corrections, kl, policy_losses
from rlsys.algorithms.requirements import corrections_of, needs_critic
from rlsys.config.bounds import one_of
from rlsys.config.schema import Config
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
    _check_critic(config)
    _check_old_logprobs(config)
    _check_weighing(config)
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


def _check_critic(config: Config) -> None:
    head_start = config.train.critic_warmup_steps
    if needs_critic(config) and head_start >= config.train.num_steps:
        raise ConfigError(
            f"train.critic_warmup_steps={head_start} is not less than train.num_steps={config.train.num_steps}: the "
            "policy would never be trained"
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
    if train.old_logprobs == "none" and train.max_staleness > 0 and not corrections_of(config):
        raise ConfigError(
            f"train.old_logprobs=none takes the ratio to be 1, but with train.max_staleness={train.max_staleness} an "
            "older policy has sampled: use learner or engine, or name algorithm.corrections"
        )
    if train.minibatches_per_step > train.prompts_per_step:
        raise ConfigError(
            f"train.minibatches_per_step={train.minibatches_per_step} is more than train.prompts_per_step="
            f"{train.prompts_per_step}: a prompt's samples stay together"
        )
    needed = policy_losses.registry.fact(str(algorithm.policy_loss["name"]), "min_updates", 1)
    if updates < needed and train.old_logprobs != "engine":
        raise ConfigError(
            f"the policy loss '{algorithm.policy_loss['name']}' holds back what a step has moved already, and a "
            f"step makes {updates} update: raise train.updates_per_step or train.minibatches_per_step"
        )
    for node in corrections_of(config):
        corrections.registry.component(node)
        if train.old_logprobs == "engine" and corrections.registry.fact(str(node["name"]), "compares_old", False):
            raise ConfigError(
                f"algorithm.corrections: '{node['name']}' compares the learner's old log-probabilities with the "
                "engine's; with train.old_logprobs=engine they are the same and it does nothing. Use "
                "train.old_logprobs=learner"
            )


def _check_weighing(config: Config) -> None:
    fact = corrections.registry.fact
    nodes = corrections_of(config)
    weighing = [str(n["name"]) for n in nodes if fact(str(n["name"]), "weighs", False) and n.get("weigh", True)]
    if len(weighing) > 1:
        raise ConfigError(
            f"algorithm.corrections: {' and '.join(weighing)} each weigh by the ratio, which would count "
            f"{len(weighing)} times; keep one, and let a 'mask' only decide with weigh=false"
        )


def _check_kl(config: Config) -> None:
    penalty, refresh = config.algorithm.kl, config.algorithm.refresh
    one_of("algorithm.kl.apply_to", penalty.apply_to, ("loss", "reward"))
    if penalty.unbiased and penalty.apply_to == "reward":
        raise ConfigError(
            "algorithm.kl.unbiased=true weighs the KL in the loss by the ratio; set algorithm.kl.apply_to=loss"
        )
    estimator = str(config.algorithm.advantage["name"])
    raw = advantages.registry.fact(estimator, "raw_rewards", False)
    if raw and penalty.apply_to == "reward" and penalty.coef > 0:
        raise ConfigError(
            f"algorithm.kl.apply_to=reward: the advantage estimator '{estimator}' reads rewards as they are, and a "
            "penalty would change what they mean; set algorithm.kl.apply_to=loss"
        )
    if penalty.name == "k1" and penalty.apply_to == "loss" and penalty.coef > 0 and not penalty.unbiased:
        raise ConfigError(
            "algorithm.kl.name=k1 in the loss has a gradient of expectation 0: set algorithm.kl.apply_to=reward, or "
            "unbiased=true, or another estimator"
        )
    for key, wanted in (("algorithm.kl.target", penalty.target is not None), ("algorithm.refresh", refresh.every > 0)):
        if wanted and penalty.coef == 0:
            raise ConfigError(f"{key} needs a reference: set algorithm.kl.coef above 0 (0 starts none)")


def _check_groups(config: Config) -> None:
    rule = config.algorithm.groups
    one_of("algorithm.groups.zero_variance", rule.zero_variance, ("keep", "drop", "resample"))
    estimator = str(config.algorithm.advantage["name"])
    known = estimator in advantages.registry.names()  # outside code states no facts
    if rule.zero_variance != "keep" and known and advantages.registry.fact(estimator, "min_group_size", 1) < 2:
        raise ConfigError(
            f"algorithm.groups.zero_variance={rule.zero_variance}: to the advantage estimator '{estimator}' a group of "
            "equal rewards does teach something; keep it"
        )
