"""Options declare their bounds, choices and help; one walker checks them."""

from __future__ import annotations

import re
from typing import Any

import pytest

from rlsys.config.bounds import check_values
from rlsys.config.learner_schema import DTYPES, PACKINGS
from rlsys.config.option import Option, Rule, options
from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.models.packing import LAYOUTS
from rlsys.models.tiny import ARCHITECTURES
from rlsys.weights.verify import FLOORS

OPTIONS = list(options(Config()))


def is_numeric(option: Option) -> bool:
    """Whether the declared type has numbers in it."""
    return re.search(r"\b(int|float)\b", option.type) is not None


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_every_option_has_help_and_every_number_a_bound(option: Option) -> None:
    assert len(option.rule.help) > 5
    assert not option.rule.help.endswith(".")  # errors put it in brackets
    if is_numeric(option):
        rule = option.rule
        assert bool(rule.bounds()) + bool(rule.choices) + rule.any_number == 1
    assert option.rule.complaint(option.value) is None


def test_the_walker_knows_every_option_once() -> None:
    keys = [option.key for option in OPTIONS]
    assert len(keys) == len(set(keys)) > 150
    assert {"seed", "model.build.warmup.check_every", "critic.lora.rank", "critic.value_clip", "rewards"} <= set(keys)
    assert sum(map(is_numeric, OPTIONS)) > 100


@pytest.mark.parametrize("option", [o for o in OPTIONS if is_numeric(o) and o.rule.bounds()], ids=lambda o: o.key)
def test_every_number_is_refused_just_outside_its_bounds(option: Option) -> None:
    outside = {"ge": -1e-6, "gt": 0.0, "le": 1e-6, "lt": 0.0}
    for name, bound in option.rule.bounds().items():
        assert option.rule.complaint(bound + outside[name]) is not None
    for number in (float("nan"), float("inf"), float("-inf")):
        assert option.rule.complaint(number) == "must be a finite number"


@pytest.mark.parametrize(
    ("rule", "value", "wrong"),
    [
        (Rule("", ge=1), 1, None),
        (Rule("", ge=1), 0, "must be at least 1"),
        (Rule("", gt=0, le=1), 1.5, "must be above 0 and at most 1"),
        (Rule("", ge=0, lt=1), (0.9, 1.0), "must be at least 0 and below 1"),
        (Rule("", ge=1), None, None),
        (Rule("", ge=1), True, None),  # a truth value is no number
        (Rule("", any_number=True), -5.0, None),
        (Rule("", any_number=True), float("inf"), "must be a finite number"),
        (Rule("", choices=("mask", "raise")), "maks", "must be one of mask, raise; did you mean 'mask'?"),
        (Rule("", choices=("mask", "raise")), "x", "must be one of mask, raise"),
        (Rule("", choices=("nf4",)), None, None),
        (Rule("", choices=(0, 1)), 2, "must be one of 0, 1"),
    ],
)
def test_a_rule_by_hand(rule: Rule, value: Any, wrong: str | None) -> None:
    assert rule.complaint(value) == wrong


def test_an_error_shows_the_key_the_value_the_bound_and_the_meaning() -> None:
    config = Config()
    config.model.build.warmup.check_every = 0
    with pytest.raises(ConfigError) as caught:
        check_values(config)
    assert str(caught.value) == (
        "model.build.warmup.check_every=0: must be at least 1 (supervised steps between measurements of the accuracy)"
    )


def test_the_bounds_of_a_role_that_is_not_started_are_not_checked() -> None:
    config = Config()
    config.reference.num_workers = 0
    check_values(config, absent=["reference"])
    with pytest.raises(ConfigError, match=r"reference\.num_workers=0: must be at least 1"):
        check_values(config)
    config.reference.packing = "pakced"
    with pytest.raises(ConfigError, match=r"reference\.packing=pakced: .*did you mean 'packed'"):
        check_values(config, absent=["reference"])


def test_the_choices_are_those_of_the_code_that_implements_them() -> None:
    rules = {option.key: option.rule for option in OPTIONS}
    assert ("auto", *LAYOUTS) == PACKINGS
    assert tuple(FLOORS) == DTYPES
    assert rules["model.build.architecture"].choices == tuple(ARCHITECTURES)
