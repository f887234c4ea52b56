"""Answers of engines and learner about one text, in whatever order they come."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest

from rlsys.errors import WeightMismatchError
from rlsys.weights.canary import NUM_TOKENS, Probe, probe_text

TEXT = np.array([5, 6, 7], dtype=np.int32)


def says(value: float) -> np.ndarray:
    return np.array([value, -1.0], dtype=np.float32)


def learned(value: float, bare: float | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    return says(value), None if bare is None else says(bare)


class Calls:
    """Calls that the test answers."""

    def __init__(self) -> None:
        self.open: dict[Any, Any] = {}

    def start(self, ref: Any, *, done: Any, **_: Any) -> None:
        self.open[ref] = done

    def answer(self, ref: Any, value: Any) -> None:
        self.open.pop(ref)(value)

    def until(self, ready: Any, **_: Any) -> None:
        assert ready()


class Side:
    """A learner or engines: every call of a worker has a number."""

    def __init__(self, role: str, size: int) -> None:
        self.names = [f"{role}/{index}" for index in range(size)]
        self._numbers = itertools.count()

    def begin_probe(self, token_ids: np.ndarray) -> dict[str, Any]:
        assert token_ids is TEXT
        number = next(self._numbers)
        return {name: (name, number) for name in self.names}


def make(bound: float | None = 1e-3) -> tuple[Probe, Calls]:
    calls: Any = Calls()
    return Probe(calls, Side("learner", 2), Side("rollout", 2), TEXT, bound=bound, deadline_s=1.0), calls


ANSWERS = [
    (("learner/0", 0), learned(-2.0)),
    (("learner/1", 0), learned(-2.0)),
    (("rollout/0", 0), (4, says(-2.0))),
    (("rollout/1", 0), (4, says(-2.0 + 1e-4))),
]


@pytest.mark.parametrize("order", itertools.permutations(range(4)))
def test_each_engine_is_compared_once_in_any_order(order: tuple[int, ...]) -> None:
    probe, calls = make()
    probe.begin(4)
    for index in order:
        calls.answer(*ANSWERS[index])
    probe.finish()
    found = probe.take()
    assert found["sync/logprob_abs_diff/max"] == pytest.approx(1e-4, rel=1e-2)
    assert found["sync/logprob_abs_diff/mean"] == pytest.approx(1e-4 / 4, rel=1e-2)  # two tokens of two engines
    assert probe.take() == {}


def test_an_engine_that_differs_is_named() -> None:
    probe, calls = make()
    probe.begin(4)
    for answer in ANSWERS[:3]:
        calls.answer(*answer)
    with pytest.raises(WeightMismatchError, match=r"a given text at .* 4: .*did not reach rollout/1") as caught:
        calls.answer(("rollout/1", 0), (4, says(-2.5)))
    assert "The update was not applied" not in str(caught.value)
    probe, calls = make(bound=None)  # weights.verify=false: measured all the same
    probe.begin(4)
    for answer in [*ANSWERS[:3], (("rollout/1", 0), (4, says(-2.5)))]:
        calls.answer(*answer)
    assert probe.take()["sync/logprob_abs_diff/max"] == 0.5


def test_an_answer_counts_for_the_version_that_it_is_of() -> None:
    """An engine that was busy answers under the next weights, or not at all."""
    probe, calls = make()
    probe.begin(4)
    calls.answer(("learner/0", 0), learned(-2.0))
    probe.begin(5)
    calls.answer(("learner/0", 1), learned(-3.0))
    calls.answer(("rollout/0", 0), (5, says(-3.0)))
    calls.answer(("rollout/1", 0), None)
    assert probe.take() == {"sync/logprob_abs_diff/mean": 0.0, "sync/logprob_abs_diff/max": 0.0}
    for version in (6, 7, 8):
        probe.begin(version)
    calls.answer(("rollout/1", 1), (5, says(0.0)))  # long ago: the learner's answer is forgotten
    assert probe.take() == {}


def test_an_engine_without_the_adapter_is_found_however_little_it_changes() -> None:
    """The adapter moves a token by 1e-5, far below the bound; the sides round 1e-7 apart."""
    probe, calls = make(bound=1e-3)
    probe.begin(4)
    calls.answer(("learner/0", 0), learned(-2.0, bare=-2.0 + 1e-5))
    calls.answer(("rollout/0", 0), (4, says(-2.0 + 1e-7)))
    assert probe.take()["sync/adapter_effect/max"] == pytest.approx(1e-5, rel=0.05)
    with pytest.raises(WeightMismatchError, match="the adapter has not taken effect: rollout/1"):
        calls.answer(("rollout/1", 0), (4, says(-2.0 + 1e-5)))


def test_an_adapter_that_changes_less_than_rounding_is_not_judged() -> None:
    probe, calls = make()
    probe.begin(4)
    calls.answer(("learner/0", 0), learned(-2.0, bare=-2.0))  # before the first update it changes nothing at all
    calls.answer(("rollout/0", 0), (4, says(-2.0 + 1e-6)))
    calls.answer(("rollout/1", 0), (4, says(-2.0)))
    assert probe.take()["sync/adapter_effect/max"] == 0.0


def test_a_text_of_short_prompts_and_of_one_long_one() -> None:
    prompts = [np.arange(3), np.arange(4)]
    assert probe_text(prompts, 100).tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert len(probe_text([np.arange(500)], 600)) == NUM_TOKENS
    assert probe_text(prompts, 6).tolist() == [0, 1, 2, 0, 1]  # room for a sampled one
