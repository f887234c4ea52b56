"""Workers that are replaced: which failures are theirs, and what becomes of the process that failed."""

from __future__ import annotations

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from rlsys.errors import ConfigError, DeadlineError, RlsysError, WorkerDiedError, WorkerError
from rlsys.runtime.crew import Crew
from rlsys.runtime.restarts import Restarts

LOST = DeadlineError("scoring: no answer within 5 s from scoring/1")


class Cluster:
    """A cluster whose processes are numbers; `answers` are what starting the next ones raises."""

    startup_deadline_s = 10.0

    def __init__(self, *answers: Exception | None, most: int = 5) -> None:
        self.restarts = Restarts(most)
        self.killed: list[int] = []
        self.calls = self
        self.answers = list(answers)
        self.workers: dict[str, Any] = {}
        self._count = 0

    def start(self, worker: type, demand: Any, *args: Any) -> Any:
        self._count += 1
        started = SimpleNamespace(number=self._count, start=SimpleNamespace(remote=lambda: None))
        self.workers[demand.name] = started
        return started

    def kill(self, worker: Any) -> None:
        self.killed.append(worker.number)

    async def result(self, ref: Any, *, who: str, what: str, deadline_s: float) -> None:
        assert (who, deadline_s) == ("scoring/1", self.startup_deadline_s)
        answer = self.answers.pop(0) if self.answers else None
        if answer is not None:
            raise answer


def crew_of(cluster: Any) -> Crew:
    demands: Any = [SimpleNamespace(name=f"scoring/{number}") for number in range(2)]
    return Crew(cluster, object, demands)


def living(crew: Crew) -> dict[str, int]:
    return {name: worker.number for name, worker in crew.named.items()}


def test_another_process_takes_the_place_of_a_lost_one() -> None:
    cluster = Cluster()
    crew, prepared = crew_of(cluster), []

    async def prepare(worker: Any) -> None:
        assert living(crew) == {"scoring/0": 1}  # nobody uses it yet
        prepared.append(worker.number)

    assert asyncio.run(crew.replace(1, LOST, prepare))
    assert (cluster.killed, prepared) == ([2], [3])  # what hangs is killed, or it would go on with its room
    assert living(crew) == {"scoring/0": 1, "scoring/1": 3}


def test_one_that_moves_works_until_the_new_process_is_ready() -> None:
    cluster = Cluster()
    crew, seen = crew_of(cluster), []

    async def prepare(worker: Any) -> None:
        seen.append((worker.number, living(crew)))

    asyncio.run(crew.move(1, prepare))
    assert seen == [(3, {"scoring/0": 1, "scoring/1": 2})]
    assert living(crew) == {"scoring/0": 1, "scoring/1": 3}
    assert cluster.killed == []  # Ray ends the one before, once its open calls are done
    cluster.answers = [DeadlineError("late")]
    with pytest.raises(DeadlineError):
        asyncio.run(crew.move(1))
    assert (living(crew), cluster.killed) == ({"scoring/0": 1, "scoring/1": 3}, [4])
    assert cluster.workers == crew.named  # nobody asks the one that failed


def test_a_new_process_that_is_lost_too_is_replaced_as_often_as_may_be(caplog: pytest.LogCaptureFixture) -> None:
    gone = WorkerDiedError("starting again: scoring/1 is gone", "scoring/1")
    cluster = Cluster(gone, DeadlineError("late"))
    assert asyncio.run(crew_of(cluster).replace(1, LOST))
    assert cluster.killed == [2, 3, 4]
    cluster = Cluster(gone, gone, gone, most=2)
    crew = crew_of(cluster)
    assert not asyncio.run(crew.replace(1, LOST))
    assert cluster.killed == [2, 3, 4]
    assert living(crew) == {"scoring/0": 1}
    assert "scoring/1 stays out of work: cluster.max_restarts=2 within an hour is reached" in caplog.text


@pytest.mark.parametrize(
    "failure",
    [WorkerError("reward 'a' cannot be loaded"), ConfigError("no"), WorkerDiedError("learner/0 is gone", "learner/0")],
)
def test_what_another_process_would_fail_at_too_ends_the_run(failure: RlsysError) -> None:
    cluster = Cluster(failure)
    with pytest.raises(type(failure), match=str(failure)):
        asyncio.run(crew_of(cluster).replace(1, LOST))
    assert cluster.killed == [2, 3]
