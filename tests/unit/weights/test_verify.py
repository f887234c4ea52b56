"""The comparison of engine and learner, and its message."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rlsys.errors import WeightMismatchError
from rlsys.types import Trajectory, VersionSpan
from rlsys.weights.verify import LogprobDiff, check_logprobs, comparable, diff_of, merge


def diff(largest: float) -> LogprobDiff:
    return LogprobDiff(total=2 * largest, largest=largest, num_tokens=4)


def cause(per_engine: dict[int, float], *, version: int = 3, bound: float = 1e-3, engines: int = 2) -> str:
    """The message about engines whose largest differences are given."""
    diffs = {engine: diff(largest) for engine, largest in per_engine.items()}
    with pytest.raises(WeightMismatchError) as caught:
        check_logprobs(diffs, bound=bound, policy_version=version, num_engines=engines)
    return str(caught.value)


def test_differences_by_hand() -> None:
    # |-1 - -1.5| = 0.5, |-2 - -2| = 0, |-3 - -2.75| = 0.25
    found = diff_of(np.array([-1.0, -2.0, -3.0]), np.array([-1.5, -2.0, -2.75]))
    assert (found.total, found.largest, found.num_tokens, found.mean) == (0.75, 0.5, 3, 0.25)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["engine", "learner", "both"])
def test_what_is_not_finite_is_infinitely_far(value: float, side: str) -> None:
    spoiled, sound = np.array([-1.0, value], dtype=np.float32), np.array([-1.0, -1.0], dtype=np.float32)
    pairs = {"engine": (spoiled, sound), "learner": (sound, spoiled), "both": (spoiled, spoiled)}
    assert diff_of(*pairs[side]).largest == math.inf


def test_nothing_to_compare_is_no_difference() -> None:
    assert diff_of(np.array([]), np.array([])) == LogprobDiff(0.0, 0.0, 0)
    assert LogprobDiff().mean == 0.0


def test_ranks_are_merged_engine_by_engine() -> None:
    ranks = [{0: LogprobDiff(1.0, 0.5, 4)}, {0: LogprobDiff(2.0, 0.75, 6), 1: LogprobDiff(3.0, 2.0, 5)}, {}]
    assert merge(ranks) == {0: LogprobDiff(3.0, 0.75, 10), 1: LogprobDiff(3.0, 2.0, 5)}


def test_up_to_the_bound_is_agreement() -> None:
    check_logprobs({0: diff(1e-3), 1: diff(0.0)}, bound=1e-3, policy_version=3, num_engines=2)
    check_logprobs({}, bound=1e-3, policy_version=3, num_engines=2)


def test_the_message_has_the_numbers_and_the_way_out() -> None:
    message = cause({0: 0.5, 1: 0.0})
    for part in (
        "policy version 3",
        "difference 5.00e-01, bound 0.001",
        "rollout/0: max 5.00e-01 mean 2.50e-01",  # the mean is 2 * 0.5 / 4
        "rollout/1: max 0.00e+00",
        "The update was not applied",
        "weights.max_logprob_diff",
        "weights.verify=false",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("per_engine", "version", "named"),
    [
        ({0: math.inf, 1: 0.0}, 3, "not finite: weights or logits hold NaN or inf"),
        ({0: 0.02, 1: 0.02}, 0, "numerical difference"),  # twenty times the bound
        ({0: 0.02, 1: 0.02}, 3, "left parameters behind on every engine"),  # small steps drift past the bound slowly
        ({0: 0.02, 1: 0.0}, 3, "the last broadcast did not reach rollout/0 completely"),
        ({0: 0.0, 1: 0.5}, 3, "the last broadcast did not reach rollout/1 completely"),
        ({1: 0.5}, 3, "the last broadcast did not reach rollout/1 completely"),  # engine 0 sampled nothing trained
        ({0: 0.5, 1: 0.7}, 0, "loaded or compute different models"),
        ({0: 0.5, 1: 0.7}, 3, "left parameters behind on every engine"),
    ],
)
def test_the_likely_cause_is_named(per_engine: dict[int, float], version: int, named: str) -> None:
    message = cause(per_engine, version=version)
    assert named in message
    causes = ("not finite", "numerical difference", "did not reach", "loaded or compute", "on every engine")
    assert [other for other in causes if other in message] == [other for other in causes if other in named]


def test_one_engine_alone_is_every_engine() -> None:
    assert "left parameters behind on every engine" in cause({0: 0.5}, engines=1)


@pytest.mark.parametrize(
    ("versions", "kept", "expected"),
    [
        ([(3, 2, 6)], False, [2, 3, 4, 5]),
        ([(3, 2, 6)], True, [2, 3, 4, 5]),
        ([(2, 2, 4), (3, 4, 6)], False, [4, 5]),
        ([(2, 2, 4), (3, 4, 6)], True, []),  # the tail attended to what version 2 had computed
        ([(2, 2, 6)], False, []),
    ],
)
def test_what_can_be_compared(versions: list[tuple[int, int, int]], kept: bool, expected: list[int]) -> None:
    """Two tokens of prompt, four of response."""
    trajectory = Trajectory(
        token_ids=np.arange(6, dtype=np.int32),
        loss_mask=np.arange(6) >= 2,
        behavior_logprobs=np.zeros(6, dtype=np.float32),
        versions=tuple(VersionSpan(*span) for span in versions),
        finish_reason="stop",
        engine=0,
    )
    assert comparable(trajectory, 3, kv_is_kept=kept).nonzero()[0].tolist() == expected
