"""Signals that cannot teach are reported once, with a likely cause, and again only if they went away and came back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from rlsys.config.compose import load_config
from rlsys.guards.alarms import Alarms
from rlsys.types import FinishReason, Outcome, Reward, RewardPart, ScoredGroup
from tests.unit.records import group, scored, summary

TWO = "rewards=[{name: accuracy}, {name: format}]"
Score = float | Outcome


def part(score: Score) -> RewardPart:
    return RewardPart(None, score) if isinstance(score, str) else RewardPart(score, "ok")


def step_of(rows: Sequence[Sequence[dict[str, Score]]], finish: FinishReason = "stop") -> list[ScoredGroup]:
    """The groups of a step, each with its responses' scores by label."""
    groups = []
    for number, scores in enumerate(rows):
        rewards = [Reward(1.0, {label: part(score) for label, score in row.items()}, "ok") for row in scores]
        groups.append(scored(group(number, [summary(4, finish=finish) for _ in scores]), rewards))
    return groups


def kinds(watch: Alarms, steps: Sequence[tuple[list[ScoredGroup], int]]) -> list[list[str]]:
    """The kinds of the new warnings after each step."""
    rows = ({"step": number, "groups/zero_variance": equal} for number, (_, equal) in enumerate(steps, start=1))
    return [[one.kind for one in watch.look(groups, row)] for (groups, _), row in zip(steps, rows, strict=True)]


GOOD = step_of([[{"accuracy": 1.0, "format": 1.0}, {"accuracy": 0.0, "format": 0.0}]] * 2), 0
NO_FORMAT = step_of([[{"accuracy": 1.0, "format": 0.0}, {"accuracy": 0.0, "format": 0.0}]] * 2), 0


def test_the_third_step_in_a_row_is_reported_once_and_again_when_it_came_back() -> None:
    watch = Alarms(load_config([TWO]))
    assert kinds(watch, [NO_FORMAT, NO_FORMAT, GOOD, NO_FORMAT, NO_FORMAT]) == [[]] * 5
    assert kinds(watch, [NO_FORMAT, NO_FORMAT]) == [["constant/format/0"], []]
    assert [one.kind for one in watch.active] == ["constant/format/0"]
    assert kinds(watch, [GOOD]) == [[]]
    assert watch.active == []
    assert kinds(watch, [NO_FORMAT] * 4) == [[], [], ["constant/format/0"], []]


def test_a_step_without_groups_says_nothing_either_way() -> None:
    watch = Alarms(load_config([TWO]))
    assert kinds(watch, [NO_FORMAT, NO_FORMAT, ([], 0), NO_FORMAT]) == [[], [], [], ["constant/format/0"]]


def test_another_constant_in_each_step_is_none() -> None:
    changing = [(step_of([[{"accuracy": value, "format": 0.0}] * 2] * 2), 2) for value in (0.0, 1.0, 2.0, 3.0)]
    watch = Alarms(load_config([TWO]))
    assert "accuracy" not in str(kinds(watch, changing))


@pytest.mark.parametrize(
    ("rows", "num_without_spread", "finish", "overrides", "kind", "names"),
    [
        (
            [[{"accuracy": 1.0, "format": 0.0}, {"accuracy": 0.0, "format": 0.0}]] * 2,
            0,
            "stop",
            [TWO],
            "constant/format/0",
            ["'format' is 0", "the prompts do not ask for it", "special tokens", "rollouts/"],
        ),
        (
            [[{"accuracy": 1.0, "format": 1.0}, {"accuracy": 0.0, "format": 1.0}]] * 2,
            0,
            "stop",
            [TWO],
            "constant/format/1",
            ["'format' is 1", "len(completion) counts messages"],
        ),
        (
            [[{"accuracy": "not_applicable", "format": 1.0}, {"accuracy": "not_applicable", "format": 0.0}]] * 2,
            0,
            "stop",
            [TWO],
            "not_applicable/accuracy",
            ["'accuracy' never applies", "answers in the data are missing", "data.columns"],
        ),
        (
            [[{"accuracy": 1.0, "format": 1.0}] * 2, [{"accuracy": 0.0, "format": 0.0}] * 2],
            2,
            "stop",
            [TWO, "rollout.temperature=0.1"],
            "no_spread",
            ["in every group", "rollout.temperature=0.1", "zero_variance=resample"],
        ),
        (
            [[{"accuracy": 1.0, "format": 1.0}, {"accuracy": 0.0, "format": 0.0}]] * 2,
            0,
            "length",
            [TWO, "rollout.max_response_tokens=4"],
            "truncated",
            ["all responses are cut off at rollout.max_response_tokens=4", "stop tokens"],
        ),
    ],
)
def test_each_kind_names_its_cause(
    rows: Any, num_without_spread: int, finish: FinishReason, overrides: list[str], kind: str, names: list[str]
) -> None:
    watch = Alarms(load_config(overrides))
    step = step_of(rows, finish), num_without_spread
    assert kinds(watch, [step] * 3) == [[], [], [kind]]
    (warning,) = watch.active
    assert warning.step == 3
    assert [name for name in names if name not in warning.text] == []


def test_most_responses_at_the_limit_are_a_warning_of_their_own() -> None:
    (whole,), (cut,) = step_of([[{"accuracy": 1.0}, {"accuracy": 0.0}]]), step_of([[{"accuracy": 1.0}]], "length")
    watch = Alarms(load_config(["rewards=[{name: accuracy}]"]))
    half = [whole, cut, cut], 0
    assert kinds(watch, [half] * 3) == [[], [], ["length_limit"]]
    assert kinds(watch, [([whole, cut], 0)]) == [[]]
    assert watch.active == []


def test_responses_of_a_length_that_was_asked_for_are_no_warning() -> None:
    step = step_of([[{"accuracy": 1.0}, {"accuracy": 0.0}]], "length"), 0
    watch = Alarms(load_config(["rewards=[{name: accuracy}]", "rollout.ignore_eos=true"]))
    assert kinds(watch, [step] * 4) == [[]] * 4


def test_truncation_explains_a_reward_of_zero_and_equal_groups_are_not_reported_beside_it() -> None:
    step = step_of([[{"accuracy": 0.0}] * 2] * 2, "length"), 2
    watch = Alarms(load_config(["rewards=[{name: accuracy}]"]))
    assert kinds(watch, [step] * 3)[-1] == ["truncated", "constant/accuracy/0"]
    assert "no response ends by itself" in watch.active[1].text


def test_what_was_learned_or_is_a_penalty_that_nobody_deserves_is_none() -> None:
    learned = step_of([[{"accuracy": 1.0, "format": 1.0}, {"accuracy": 0.0, "format": 1.0}]] * 2), 0
    watch = Alarms(load_config([TWO]))
    assert kinds(watch, [GOOD, learned, learned, learned]) == [[]] * 4
    assert kinds(watch, [NO_FORMAT] * 3)[-1] == ["constant/format/0"]  # and what was learned can be lost
    assert "it varied before" in watch.active[0].text
    resumed = Alarms(load_config([TWO]), {"accuracy": 1.0, "format": 1.0})
    assert kinds(resumed, [learned] * 3) == [[]] * 3
    penalty = "soft_overlong_punishment"
    rested = step_of([[{"accuracy": 1.0, penalty: 0.0}, {"accuracy": 0.0, penalty: 0.0}]] * 2), 0
    assert kinds(Alarms(load_config([f"rewards=[{{name: accuracy}}, {{name: {penalty}}}]"])), [rested] * 3)[-1] == []
    assert (
        kinds(Alarms(load_config(["rewards=[{name: accuracy}, {name: format, weight: 0}]"])), [NO_FORMAT] * 3)[-1] == []
    )


def test_an_estimator_that_compares_no_groups_needs_no_spread() -> None:
    step = step_of([[{"accuracy": 1.0}], [{"accuracy": 0.0}]]), 2
    overrides = ["rewards=[{name: accuracy}]", "algorithm=reinforce_pp"]
    assert kinds(Alarms(load_config(overrides)), [step] * 3)[-1] == []
    assert kinds(Alarms(load_config(overrides[:1])), [step] * 3)[-1] == ["no_spread"]
