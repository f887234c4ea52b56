"""A queue in front of workers: what waits goes together to whoever is idle."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from rlsys.errors import DeadlineError, RlsysError, WorkerDiedError, WorkerError
from rlsys.runtime.background import Background
from rlsys.runtime.batching import MAX_LOSSES, BatchingQueue
from tests.unit.virtual_time import run_virtual

Queue = BatchingQueue[int, int]


class Workers:
    """Answer with ten times each item, after as many seconds as there are items."""

    def __init__(self) -> None:
        self.calls: list[tuple[int, list[int]]] = []

    async def __call__(self, worker: int, items: list[int]) -> list[int]:
        self.calls.append((worker, items))
        await asyncio.sleep(len(items))
        if -1 in items:
            raise WorkerError("it failed")
        return [10 * item for item in items]


def run(num_workers: int, scenario: Callable[[Queue, Workers], Awaitable[None]]) -> None:
    async def main() -> None:
        background, workers = Background(), Workers()
        queue = BatchingQueue(num_workers, workers, background, weight=abs)
        await background.supervise(scenario(queue, workers))

    run_virtual(main())


def test_what_comes_together_is_divided_by_weight() -> None:
    async def scenario(queue: Queue, workers: Workers) -> None:
        assert queue.is_idle
        results = [queue.put(item) for item in (5, 1, 2, 2)]
        assert not queue.is_idle
        assert await asyncio.gather(*results) == [50, 10, 20, 20]
        assert sorted(workers.calls) == [(0, [5]), (1, [1, 2, 2])]
        assert queue.is_idle

    run(2, scenario)


def test_the_busier_the_workers_the_larger_the_next_call() -> None:
    async def scenario(queue: Queue, workers: Workers) -> None:
        first = queue.put(1)
        await asyncio.sleep(0.5)
        later = [queue.put(item) for item in (2, 3, 4)]
        assert queue.num_waiting == 3
        assert await asyncio.gather(first, *later) == [10, 20, 30, 40]
        assert workers.calls == [(0, [1]), (0, [2, 3, 4])]

    run(1, scenario)


def test_a_failed_call_fails_its_items_and_ends_the_run_although_nobody_waits_yet() -> None:
    async def main() -> None:
        background, workers = Background(), Workers()
        queue = BatchingQueue(1, workers, background, weight=abs)
        results: list[asyncio.Future[int]] = []

        async def scenario() -> None:
            results.extend(queue.put(item) for item in (-1, 7))
            await asyncio.sleep(0.5)
            queue.put(8)  # it waits for the worker, which gets nothing any more
            await asyncio.sleep(1e9)

        with pytest.raises(WorkerError, match="it failed"):
            await background.supervise(scenario())
        for result in results:
            with pytest.raises(WorkerError, match="it failed"):
                await result
        assert workers.calls == [(0, [-1, 7])]

    run_virtual(main())


def test_nobody_has_to_wait_for_a_result() -> None:
    async def scenario(queue: Queue, workers: Workers) -> None:
        gone, other = queue.put(1), queue.put(2)
        await asyncio.sleep(0.5)
        gone.cancel()
        assert await other == 20
        assert queue.is_idle

    run(1, scenario)


class LostWorkers(Workers):
    """The calls numbered in `lost` lose their worker, which takes ten seconds to replace where it can be."""

    def __init__(self, *lost: int, can_replace: bool = True) -> None:
        super().__init__()
        self.replaced: list[int] = []
        self._lost = lost
        self._can_replace = can_replace

    async def __call__(self, worker: int, items: list[int]) -> list[int]:
        number = len(self.calls)
        results = await super().__call__(worker, items)
        if number in self._lost:
            raise WorkerDiedError("it is gone") if number % 2 else DeadlineError("no answer")
        return results

    async def replace(self, worker: int, error: RlsysError) -> bool:
        assert str(error) in ("it is gone", "no answer")
        self.replaced.append(worker)
        await asyncio.sleep(10.0)
        return self._can_replace


def run_lost(num_workers: int, workers: LostWorkers, scenario: Callable[[Queue], Awaitable[None]]) -> None:
    async def main() -> None:
        background = Background()
        queue = BatchingQueue(num_workers, workers, background, weight=abs, replace=workers.replace)
        await background.supervise(scenario(queue))

    run_virtual(main())


def test_a_lost_worker_s_items_go_to_others_until_it_is_replaced() -> None:
    workers = LostWorkers(0)

    async def scenario(queue: Queue) -> None:
        results = [queue.put(item) for item in (5, 1, 2, 2)]
        assert await asyncio.gather(*results) == [50, 10, 20, 20]
        assert workers.calls == [(0, [5]), (1, [1, 2, 2]), (1, [5])]
        assert not queue.is_idle  # a worker is being replaced
        await asyncio.sleep(20.0)
        assert queue.is_idle
        assert await asyncio.gather(queue.put(3), queue.put(4)) == [30, 40]
        assert sorted(workers.calls[3:]) == [(0, [4]), (1, [3])]

    run_lost(2, workers, scenario)
    assert workers.replaced == [0]


def test_the_only_worker_s_items_wait_for_its_replacement_and_keep_their_order() -> None:
    workers = LostWorkers(0)

    async def scenario(queue: Queue) -> None:
        first = [queue.put(item) for item in (1, 2)]
        await asyncio.sleep(0.5)
        assert await asyncio.gather(*first, queue.put(3)) == [10, 20, 30]
        assert workers.calls == [(0, [1, 2]), (0, [1, 2, 3])]
        assert queue.is_idle

    run_lost(1, workers, scenario)


def test_items_that_cost_several_workers_end_the_run() -> None:
    workers = LostWorkers(*range(MAX_LOSSES))

    async def scenario(queue: Queue) -> None:
        with pytest.raises(DeadlineError, match="no answer"):
            await queue.put(1)
        await asyncio.sleep(1e9)

    with pytest.raises(DeadlineError, match="no answer"):
        run_lost(1, workers, scenario)
    assert workers.replaced == [0] * (MAX_LOSSES - 1)


def test_with_no_worker_left_everything_fails_that_waits() -> None:
    workers = LostWorkers(0, 1, can_replace=False)
    results: list[asyncio.Future[int]] = []

    async def scenario(queue: Queue) -> None:
        results.extend(queue.put(item) for item in (1, 2))
        await asyncio.sleep(0.5)
        results.append(queue.put(3))
        await asyncio.sleep(1e9)

    with pytest.raises(WorkerDiedError, match="it is gone"):
        run_lost(2, workers, scenario)
    assert sorted(workers.replaced) == [0, 1]
    assert all(result.done() for result in results)
