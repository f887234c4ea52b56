"""Options that were set in vain are named, each with what it lacks."""

from __future__ import annotations

from typing import Any

import pytest

from rlsys.algorithms import advantages
from rlsys.algorithms.requirements import needs_critic, needs_reference_workers
from rlsys.config.compose import load_config, resolve_dtypes
from rlsys.config.effects import without_effect
from rlsys.config.option import AnyNeed, Need, Option, options
from rlsys.config.overrides import presets
from rlsys.config.schema import Config

OPTIONS = {option.key: option for option in options(Config())}
NEEDING = [option for option in OPTIONS.values() if option.needs]


def put(config: Config, key: str, value: Any) -> None:
    *sections, name = key.split(".")
    node: Any = config
    for section in sections:
        node = node[section] if isinstance(node, dict) else getattr(node, section)
    if isinstance(node, dict):
        node[name] = value
    else:
        setattr(node, name, value)


def decide(config: Config, need: Need | AnyNeed, *, holds: bool) -> None:
    """Set what a condition is about, so that the condition holds or does not."""
    if isinstance(need, AnyNeed):  # the last of them is enough
        for number, one in enumerate(need.needs):
            decide(config, one, holds=holds and number == len(need.needs) - 1)
        return
    if need.sign == ">":
        value: Any = need.value + 1 if holds else need.value
    else:
        value = need.value if holds == (need.sign == "=") else another(need)
    put(config, need.key, value)
    assert need.holds(config) == holds


def another(need: Need) -> Any:
    """Return a value other than that in the condition."""
    if isinstance(need.value, bool):
        return not need.value
    return 1 if isinstance(need.value, int | float) or need.value is None else f"not {need.value}"


def changed(option: Option) -> Any:
    """Return a value other than the default."""
    if isinstance(option.value, bool):
        return not option.value
    return option.value + 1 if isinstance(option.value, int | float) else ["other"]


@pytest.mark.parametrize("option", NEEDING, ids=lambda option: option.key)
def test_an_option_is_named_exactly_when_it_is_changed_and_lacks_something(option: Option) -> None:
    config = Config()
    put(config, option.key, changed(option))
    for need in option.needs:
        decide(config, need, holds=True)
    assert option.key not in without_effect(config)
    for need in option.needs:
        decide(config, need, holds=False)
        assert without_effect(config)[option.key] == str(need)
        decide(config, need, holds=True)
    put(config, option.key, option.value)
    decide(config, option.needs[0], holds=False)
    assert option.key not in without_effect(resolve_dtypes(config))


@pytest.mark.parametrize("option", NEEDING, ids=lambda option: option.key)
def test_a_condition_is_about_an_option_and_a_value_that_it_takes(option: Option) -> None:
    every = [one for need in option.needs for one in (need.needs if isinstance(need, AnyNeed) else [need])]
    for need in every:
        if need.key != "algorithm.advantage.name":  # of a function; its options are free
            assert OPTIONS[need.key].rule.complaint(need.value) is None
            assert need.key != option.key


def test_the_conditions_of_roles_are_those_under_which_they_start() -> None:
    for name in advantages.registry.names():
        for rank, coef in ((0, 0.0), (0, 0.1), (4, 0.1)):
            config = Config()
            config.algorithm.advantage, config.algorithm.kl.coef, config.learner.lora.rank = {"name": name}, coef, rank
            config.critic.lr, config.reference.microbatch_tokens = 1e-3, 77
            found = without_effect(config)
            assert ("critic.lr" in found) != needs_critic(config)
            assert ("reference.microbatch_tokens" in found) != needs_reference_workers(config)


def test_a_composed_configuration_has_lists_for_tuples() -> None:
    assert without_effect(load_config(["critic.betas=[0.9,0.999]"])) == {}
    assert list(without_effect(load_config(["critic.betas=[0.9,0.99]"]))) == ["critic.betas"]


@pytest.mark.parametrize("name", presets("experiment"))
def test_no_experiment_sets_an_option_in_vain(name: str) -> None:
    # An experiment may speak for both kinds of machines: what has no effect on one must have one on the other.
    machines = (0, 8)
    in_vain = [without_effect(load_config([f"experiment={name}", f"cluster.num_gpus={gpus}"])) for gpus in machines]
    assert set.intersection(*map(set, in_vain)) == set()
