"""Log-probabilities of one text from engines and learner, in whatever order they arrive."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Collection
from typing import Any

import numpy as np
import pytest
import ray

from rlsys.errors import WeightMismatchError, WorkerError
from rlsys.runtime.calls import Calls
from rlsys.weights.canary import NUM_TOKENS, WeightCanary, canary_text

TEXT = np.array([5, 6, 7], dtype=np.int32)
BIN = 0.16  # exactness of a quantile
Call = tuple[str, int]  # a worker, and which of its calls


def engine_gives(value: float) -> np.ndarray:
    return np.array([value, -1.0], dtype=np.float32)


def learner_gives(value: float, bare: float | None = None) -> tuple[np.ndarray, np.ndarray | None]:
    return engine_gives(value), None if bare is None else engine_gives(bare)


class Side:
    """A learner or engines whose calls the test answers."""

    def __init__(self, role: str, size: int, calls: dict[Call, asyncio.Future[Any]]) -> None:
        self.names = [f"{role}/{index}" for index in range(size)]
        self._numbers = itertools.count()
        self._calls = calls

    def begin_probe(self, token_ids: np.ndarray, names: Collection[str] | None = None) -> dict[str, Any]:
        assert token_ids is TEXT
        number = next(self._numbers)
        made = {name: asyncio.get_running_loop().create_future() for name in (self.names if names is None else names)}
        self._calls.update({(name, number): future for name, future in made.items()})
        return made


class Bench:
    """A canary between two learner ranks and two engines."""

    def __init__(self, dtype: str | None) -> None:
        self._open: dict[Call, asyncio.Future[Any]] = {}
        learner, self.rollout = Side("learner", 2, self._open), Side("rollout", 2, self._open)
        self.canary = WeightCanary(Calls(), learner, self.rollout, TEXT, dtype=dtype, deadline_s=1.0)

    async def answer(self, *answers: tuple[Call, Any]) -> None:
        for call, value in answers:
            self._open.pop(call).set_result(value)
            await self.settle()

    @staticmethod
    async def settle() -> None:
        for _ in range(10):
            await asyncio.sleep(0)


def run(scenario: Callable[[Bench], Awaitable[None]], dtype: str | None = "float32") -> None:
    async def main() -> None:
        bench = Bench(dtype)
        await bench.canary._calls.background.supervise(scenario(bench))

    asyncio.run(main())


ANSWERS: list[tuple[Call, Any]] = [
    (("learner/0", 0), learner_gives(-2.0)),
    (("learner/1", 0), learner_gives(-2.0)),
    (("rollout/0", 0), (4, engine_gives(-2.0))),
    (("rollout/1", 0), (4, engine_gives(-2.0 + 1e-4))),
]


@pytest.mark.parametrize("order", itertools.permutations(range(4)))
def test_each_engine_is_compared_once_in_any_order(order: tuple[int, ...]) -> None:
    async def scenario(bench: Bench) -> None:
        bench.canary.begin(4)
        await bench.answer(*(ANSWERS[index] for index in order))
        await bench.canary.finish()
        found = bench.canary.take()
        assert found["sync/logprob_abs_diff/p999"] == pytest.approx(1e-4, rel=BIN)
        assert found["sync/logprob_abs_diff/mean"] == pytest.approx(1e-4 / 4, rel=1e-2)  # 2 tokens of 2 engines
        assert bench.canary.take() == {}

    run(scenario)


def test_the_learner_may_be_asked_first() -> None:
    async def scenario(bench: Bench) -> None:
        asked = asyncio.create_task(bench.canary.ask_learner(4))
        await bench.settle()
        assert {name for name, _ in bench._open} == {"learner/0", "learner/1"}
        assert not asked.done()
        await bench.answer(ANSWERS[0])
        await asked  # rank 0 has answered; the other gives the same
        bench.canary.begin(4)
        await bench.answer(*ANSWERS[1:])  # each side was asked once: there is no other call to answer
        assert not bench._open
        await bench.canary.finish()
        assert bench.canary.take()["sync/logprob_abs_diff/p999"] == pytest.approx(1e-4, rel=BIN)

    run(scenario)


@pytest.mark.parametrize("order", itertools.permutations(range(4)))
def test_an_engine_that_differs_is_named_whoever_answers_first(order: tuple[int, ...]) -> None:
    answers = [*ANSWERS[:3], (("rollout/1", 0), (4, engine_gives(-2.5)))]

    async def scenario(bench: Bench) -> None:
        bench.canary.begin(4)
        await bench.answer(*(answers[index] for index in order))
        await asyncio.sleep(60)

    with pytest.raises(
        WeightMismatchError, match=r"rollout/1 and the learner disagree .* fixed text .*version 4"
    ) as caught:
        run(scenario)
    assert "(the other engines agree with the learner)" in str(caught.value)
    assert "engine and learner compute different models" in str(caught.value)


def test_an_engine_that_does_not_change_with_the_learner_is_found() -> None:
    """By 1e-4, far less than the sides may be apart."""

    async def scenario(bench: Bench) -> None:
        for version, learned in enumerate((-2.0, -2.0 + 1e-4)):
            bench.canary.begin(version)
            await bench.answer(
                (("learner/0", version), (np.array([learned, learned], dtype=np.float32), None)),
                (("learner/1", version), (np.array([learned, learned], dtype=np.float32), None)),
                (("rollout/0", version), (version, np.array([learned, learned], dtype=np.float32))),
                (("rollout/1", version), (version, np.array([-2.0, -2.0], dtype=np.float32))),
            )
        await asyncio.sleep(60)

    with pytest.raises(WeightMismatchError, match=r"rollout/1 and .* version 1 .*it still computes with older weights"):
        run(scenario)


def test_without_a_bound_differences_are_measured_all_the_same() -> None:
    async def scenario(bench: Bench) -> None:
        bench.canary.begin(4)
        await bench.answer(*ANSWERS[:3], (("rollout/1", 0), (4, engine_gives(-2.5))))
        assert bench.canary.take()["sync/logprob_abs_diff/p999"] == pytest.approx(0.5, rel=BIN)

    run(scenario, dtype=None)  # weights.verify=false


def test_versions_that_no_engine_had_time_for_are_counted_and_reported(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(bench: Bench) -> None:
        for version in range(3):
            bench.canary.begin(version)
            await bench.answer(
                (("learner/0", version), learner_gives(-2.0)),
                (("learner/1", version), learner_gives(-2.0)),
                (("rollout/0", version), None),
                (("rollout/1", version), None),
            )
        assert bench.canary.take()["sync/canary_missed"] == 3
        assert bench.canary.take() == {}

    run(scenario)
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert "no engine had the time to compute the fixed text under the policy versions up to 2" in caplog.text


def test_a_result_counts_for_the_version_that_it_is_about() -> None:
    """An engine that was busy answers under the next weights, or not at all."""

    async def scenario(bench: Bench) -> None:
        canary = bench.canary
        canary.begin(4)
        await bench.answer((("learner/0", 0), learner_gives(-2.0)))
        canary.begin(5)
        await bench.answer(
            (("learner/0", 1), learner_gives(-3.0)),
            (("rollout/0", 0), (5, engine_gives(-3.0))),
            (("rollout/1", 0), None),
            (("rollout/1", 1), None),
            (("rollout/0", 1), (5, engine_gives(-3.0))),
        )
        found = canary.take()
        assert (found["sync/logprob_abs_diff/mean"], found["sync/k3"]) == (0.0, 0.0)
        assert found["sync/canary_change/mean"] == 0.5  # one of two tokens moved by 1
        for version in (6, 7, 8):
            canary.begin(version)
        # Long ago: the learner's result is forgotten.
        await bench.answer((("rollout/1", 2), (5, engine_gives(0.0))))
        assert canary.take() == {}

    run(scenario)


def test_an_engine_without_the_adapter_is_found_however_little_it_changes() -> None:
    """The adapter moves a token by 1e-5, far below the bound; the sides round 1e-7 apart."""

    async def scenario(bench: Bench) -> None:
        bench.canary.begin(4)
        await bench.answer(
            (("learner/0", 0), learner_gives(-2.0, bare=-2.0 + 1e-5)),
            (("rollout/0", 0), (4, engine_gives(-2.0 + 1e-7))),
        )
        assert bench.canary.take()["sync/adapter_effect/p999"] == pytest.approx(1e-5, rel=BIN)
        await bench.answer((("rollout/1", 0), (4, engine_gives(-2.0 + 1e-5))))
        await asyncio.sleep(60)

    with pytest.raises(WeightMismatchError, match=r"rollout/1 and the learner .*: the adapter has not taken effect"):
        run(scenario)


def test_without_a_bound_an_engine_without_the_adapter_goes_on() -> None:
    async def scenario(bench: Bench) -> None:
        bench.canary.begin(4)
        await bench.answer(
            (("learner/0", 0), learner_gives(-2.0, bare=-1.0)),
            (("rollout/0", 0), (4, engine_gives(-1.0))),
            (("rollout/1", 0), (4, engine_gives(-1.0))),
        )
        assert bench.canary.take()["sync/adapter_effect/mean"] == 0.5

    run(scenario, dtype=None)  # weights.verify=false


def test_an_adapter_that_changes_less_than_rounding_is_not_judged() -> None:
    async def scenario(bench: Bench) -> None:
        bench.canary.begin(4)
        await bench.answer(
            (("learner/0", 0), learner_gives(-2.0, bare=-2.0)),  # before the first update it changes nothing at all
            (("rollout/0", 0), (4, engine_gives(-2.0 + 1e-6))),
            (("rollout/1", 0), (4, engine_gives(-2.0))),
        )
        assert bench.canary.take()["sync/adapter_effect/mean"] == 0.0

    run(scenario)


def test_a_text_of_short_prompts_and_of_one_long_one() -> None:
    prompts = [np.arange(3), np.arange(4)]
    assert canary_text(prompts, 100).tolist() == [0, 1, 2, 0, 1, 2, 3]
    assert len(canary_text([np.arange(500)], 600)) == NUM_TOKENS
    assert canary_text(prompts, 6).tolist() == [0, 1, 2, 0, 1]  # room for a sampled one


def test_while_every_engine_is_lost_there_is_nothing_to_compare() -> None:
    async def scenario(bench: Bench) -> None:
        bench.rollout.names.clear()
        bench.canary.begin(4)
        await bench.answer(*ANSWERS[:2])
        await bench.canary.finish()

    run(scenario)


def test_an_engine_that_was_lost_meanwhile_is_not_compared(caplog: pytest.LogCaptureFixture) -> None:
    async def scenario(bench: Bench) -> None:
        bench.canary.begin(4)
        bench._open.pop(("rollout/1", 0)).set_exception(ray.exceptions.ActorDiedError())
        await bench.answer(*ANSWERS[:3])
        await bench.canary.finish()

    run(scenario)
    assert "not compared with the learner: comparing weights: rollout/1 is gone" in caplog.text


@pytest.mark.parametrize("served", [-2.0, -2.5])
def test_an_engine_that_has_just_started_is_compared_before_it_serves(served: float) -> None:
    """Also where the one before it in its place gave something else at the version before."""

    async def scenario(bench: Bench) -> None:
        bench.canary.begin(4)
        await bench.answer(*ANSWERS)
        checking = asyncio.ensure_future(bench.canary.check(5, "rollout/1"))
        await bench.settle()
        await bench.answer((("learner/0", 1), learner_gives(-2.0)), (("learner/1", 1), learner_gives(-2.0)))
        assert not checking.done()
        await bench.answer((("rollout/1", 1), (5, engine_gives(served))))
        if served == -2.0:
            await checking
        else:
            with pytest.raises(WorkerError, match=r"rollout/1 was given .* 5, and it is 2\.50e-01 from"):
                await checking

    run(scenario)


@pytest.mark.parametrize("answer", [None, (4, engine_gives(-2.0))])
def test_an_engine_that_gives_nothing_about_the_version_does_not_serve(answer: Any) -> None:
    async def scenario(bench: Bench) -> None:
        checking = asyncio.ensure_future(bench.canary.check(5, "rollout/1"))
        await bench.settle()
        await bench.answer(*ANSWERS[:2], (("rollout/1", 0), answer))
        with pytest.raises(WorkerError, match=r"rollout/1 was given policy version 5, and gave nothing"):
            await checking

    run(scenario)
