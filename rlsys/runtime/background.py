"""Tasks that run beside the training loop, and which error is raised when several of them fail."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine, Iterable, Sequence
from typing import Any, TypeVar

from rlsys.errors import DeadlineError, WorkerDiedError, WorkerError

T = TypeVar("T")
# Seconds that are waited for further failures after the first one: the peers of a worker that died can notice its
# broken connections before Ray reports the death.
SETTLE_S = 3.0


class Background:
    """The tasks of one run. The first that fails ends the run."""

    def __init__(self) -> None:
        self._tasks: set[asyncio.Task[Any]] = set()
        self._failures: list[BaseException] = []
        self._has_failed = asyncio.Event()

    def start(self, work: Coroutine[Any, Any, Any]) -> asyncio.Task[Any]:
        """Run `work` beside everything else; its result is nobody's, its failure ends the run."""
        task = asyncio.get_running_loop().create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._end)
        return task

    async def supervise(self, main: Coroutine[Any, Any, T]) -> T:
        """Run `main` to its end, then cancel what still runs beside it.

        Raises what explains a failure best, be it of `main` or of a background task; see `root_cause`.
        """
        task = self.start(main)
        failed = asyncio.ensure_future(self._has_failed.wait())
        try:
            await asyncio.wait({task, failed}, return_when=asyncio.FIRST_COMPLETED)
            if self._failures and self._tasks and may_be_a_consequence(self._failures):
                await asyncio.wait(self._tasks, timeout=SETTLE_S)
            if self._failures:
                raise root_cause(self._failures)
            result: T = task.result()
            return result
        finally:
            await cancel([failed])
            # Again and again: a task that is cancelled may have started another.
            while running := [task for task in self._tasks if not task.done()]:
                await cancel(running)
            self._failures.clear()
            self._has_failed.clear()

    def _end(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            self._failures.append(error)
            self._has_failed.set()


async def cancel(tasks: Iterable[asyncio.Future[Any]]) -> None:
    """Cancel tasks and wait until all have ended; ignore what they raise."""
    open_tasks = [task for task in tasks if not task.done()]
    for task in open_tasks:
        task.cancel()
    await asyncio.gather(*open_tasks, return_exceptions=True)


def may_be_a_consequence(failures: Sequence[BaseException]) -> bool:
    """Return whether a worker's death could explain the failures: errors of workers and deadlines, but no death yet."""
    if any(isinstance(error, WorkerDiedError) for error in failures):
        return False
    return all(isinstance(error, WorkerError | DeadlineError) for error in failures)


def root_cause(failures: Sequence[BaseException]) -> BaseException:
    """Return a worker's death if there is one, since it explains its peers' broken connections; else the first.

    `failures` are in the order in which they happened.
    """
    return min(failures, key=lambda error: 0 if isinstance(error, WorkerDiedError) else 1)
