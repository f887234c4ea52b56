"""The comparison of engine and learner on trained tokens, its bounds and its message."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from rlsys.errors import WeightMismatchError
from rlsys.types import Trajectory, VersionSpan
from rlsys.weights.verify import ABSOLUTE, FACTOR, FLOORS, Agreement, Differences, coarser, comparable, merge


def apart(size: float, count: int = 100) -> Differences:
    """Tokens whose log-probabilities all differ by `size`."""
    return Differences.between(np.full(count, -1.0), np.full(count, -1.0 + size))


def cause(found: dict[int, Differences], *, first: float | None = None, dtype: str = "float32") -> str:
    """The message about these engines, after a first step with differences of size `first`."""
    agreement = Agreement(dtype)
    if first is not None:
        agreement.check({0: apart(first)}, 0)
    with pytest.raises(WeightMismatchError) as caught:
        agreement.check(found, 3)
    return str(caught.value)


def test_differences_by_hand() -> None:
    # |-1 - -1.5| = 0.5, |-2 - -2| = 0, |-3 - -2.75| = 0.25; the log-ratios are -0.5, 0 and 0.25
    found = Differences.between(np.array([-1.0, -2.0, -3.0]), np.array([-1.5, -2.0, -2.75]))
    assert (found.num_tokens, found.mean) == (3, 0.25)
    assert found.k3 == pytest.approx((math.exp(-0.5) - 1 + 0.5 + math.exp(0.25) - 1 - 0.25) / 3)


def test_a_quantile_is_exact_to_a_tenth() -> None:
    values = np.random.default_rng(0).exponential(1e-3, 100_000)
    found = Differences.between(np.zeros(len(values)), values).quantile
    assert np.quantile(values, 0.999) <= found < 1.2 * np.quantile(values, 0.999)
    assert apart(0.0).quantile == 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("side", ["engine", "learner", "both"])
def test_what_is_not_finite_is_found(value: float, side: str) -> None:
    spoiled, sound = np.array([-1.0, value], dtype=np.float32), np.array([-1.0, -1.0], dtype=np.float32)
    pairs = {"engine": (spoiled, sound), "learner": (sound, spoiled), "both": (spoiled, spoiled)}
    assert "not finite: weights or logits hold NaN or inf" in cause({0: Differences.between(*pairs[side])})


def test_nothing_to_compare_is_no_difference() -> None:
    empty = Differences.between(np.array([]), np.array([]))
    assert (empty.num_tokens, empty.mean, empty.k3, empty.quantile, empty.metrics()) == (0, 0.0, 0.0, 0.0, {})
    agreement = Agreement("float32")
    agreement.check({0: empty}, 0)
    agreement.check({}, 0)
    assert agreement.bound.mean == ABSOLUTE["float32"]  # the first step with tokens sets the others'


def test_ranks_are_merged_engine_by_engine() -> None:
    merged = merge([{0: apart(0.1, 30)}, {0: apart(0.4, 10), 1: apart(3.0, 5)}, {}])
    assert sorted(merged) == [0, 1]
    assert (merged[0].num_tokens, merged[0].mean) == (40, pytest.approx(0.175))
    assert int(merged[0].counts.sum()) == 40


def test_the_first_step_sets_the_bounds_of_the_others() -> None:
    agreement = Agreement("bfloat16", "float32")
    agreement.check({0: apart(0.02), 1: apart(0.04)}, 0)
    assert agreement.bound.mean == pytest.approx(FACTOR * 0.03 + FLOORS["bfloat16"])
    agreement.check({0: apart(0.3), 1: apart(0.0)}, 1)
    assert agreement.bound.mean == pytest.approx(FACTOR * 0.03 + FLOORS["bfloat16"])  # not the second's
    with pytest.raises(WeightMismatchError):
        agreement.check({0: apart(0.32), 1: apart(0.0)}, 2)


def test_the_coarser_side_decides() -> None:
    assert [coarser("float32", "bfloat16"), coarser("bfloat16"), coarser("float32")] == ["bfloat16"] * 2 + ["float32"]


def test_the_message_has_the_numbers_and_the_way_out() -> None:
    message = cause({0: apart(0.5), 1: apart(0.0)}, first=1e-5)
    for part in (
        "policy version 3",
        "rollout/0: mean 5.00e-01",
        "rollout/1: mean 0.00e+00, 99.9% below 0.00e+00, k3 0.00e+00",
        "bounds are mean 2.00e-04",
        "10 times the mean and 100 times the k3 of the first step compared, plus 0.0001",
        "The update was not applied",
        "weights.verify=false",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("sizes", "first", "named"),
    [
        ({0: 0.02, 1: 0.0}, 1e-5, "rollout/0 does not compute with the weights it was sent; the other engines agree"),
        ({0: 0.0, 1: 0.5}, None, "rollout/1 does not compute with the weights"),
        ({0: 0.5, 1: 0.7}, None, "engine and learner compute different models"),
        ({0: 0.5, 1: 0.7}, 1e-5, "engines compute with other weights than they were sent, or the two sides' rounding"),
        ({0: 0.5}, 1e-5, "engines compute with other weights than they were sent"),
    ],
)
def test_the_likely_cause_is_named(sizes: dict[int, float], first: float | None, named: str) -> None:
    message = cause({engine: apart(size) for engine, size in sizes.items()}, first=first)
    assert named in message
    causes = ("does not compute with", "different models", "than they were sent, or")
    assert len([other for other in causes if other in message]) == 1


def heavy(seed: int, count: int, scale: float) -> Differences:
    """Differences with a tail as of real models in bfloat16: single tokens are many nats apart."""
    rng = np.random.default_rng(seed)
    ratio = np.clip(scale * rng.standard_t(1.5, count), -20.0, 20.0)
    return Differences.between(np.full(count, -21.0), ratio - 21.0)


def test_a_healthy_run_with_heavy_tails_goes_on() -> None:
    agreement = Agreement("bfloat16")
    largest = 0.0
    for step in range(12):
        found = {engine: heavy(100 * step + engine, 300_000, 0.01) for engine in range(4)}
        agreement.check(found, step)
        largest = max(largest, max(np.flatnonzero(each.counts)[-1] for each in found.values()))
    assert largest >= np.searchsorted(np.logspace(-9, 3, 193), 5.0)  # some tokens were more than 5 nats apart


@pytest.mark.parametrize("count", [8, 64, 1000])
def test_a_single_token_far_off_says_nothing(count: int) -> None:
    agreement = Agreement("bfloat16")
    agreement.check({0: apart(0.01, 1000)}, 0)
    learned = np.full(count, -1.0)
    behavior = learned + 0.01
    learned[0] = -19.0
    agreement.check({0: Differences.between(behavior, learned)}, 1)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_another_model_is_found_in_the_first_step(dtype: str) -> None:
    """Two random distributions over 1000 tokens, one of them sampled from."""
    rng = np.random.default_rng(0)
    engine, learner = (rng.standard_normal((500, 1000)) for _ in range(2))
    engine -= np.log(np.exp(engine).sum(1, keepdims=True))
    learner -= np.log(np.exp(learner).sum(1, keepdims=True))
    tokens = [rng.choice(1000, p=np.exp(row)) for row in engine]
    rows = np.arange(500)
    assert "different models" in cause(
        {0: Differences.between(engine[rows, tokens], learner[rows, tokens])}, dtype=dtype
    )


def test_differences_do_not_change_what_they_were_made_of() -> None:
    one = apart(0.1)
    before = replace(one, counts=one.counts.copy())
    one + apart(0.2)
    assert (one.counts == before.counts).all()


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


def test_a_few_tokens_are_no_measure() -> None:
    """Such as the tails of responses that ran across a broadcast: in bfloat16 one token may be 0.2 nats off."""
    agreement = Agreement("bfloat16")
    few = Differences.between(np.zeros(3), np.full(3, 0.2))
    agreement.check({0: few}, 1)
    many = Differences.between(np.zeros(10_000), np.full(10_000, 0.01))
    agreement.check({0: many}, 2)
    agreement.check({0: few}, 3)
    with pytest.raises(WeightMismatchError):
        agreement.check({0: Differences.between(np.zeros(10_000), np.full(10_000, 0.2))}, 4)
    with pytest.raises(WeightMismatchError, match="not finite"):
        agreement.check({0: Differences.between(np.zeros(3), np.full(3, np.nan))}, 5)
