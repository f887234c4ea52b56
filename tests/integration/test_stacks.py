"""The error of a wait that took too long says where the worker stands."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray

from rlsys.config.schema import ClusterConfig
from rlsys.errors import DeadlineError
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.logs import log_worker
from rlsys.runtime.room import Demand
from rlsys.runtime.stacks import stack_of
from tests.integration.runs import wait


class Slow:
    def __init__(self) -> None:
        log_worker()

    def pid(self) -> int:
        return os.getpid()

    def read_a_pipe_that_nobody_writes(self) -> None:
        os.read(os.pipe()[0], 1)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    found = Cluster(ClusterConfig(), tmp_path / "logs")
    try:
        found.connect([Demand("learner/0", 1.0), Demand("learner/1", 1.0)])
        yield found
    finally:
        found.close()


def test_a_late_worker_s_stack_is_in_the_error(cluster: Cluster, tmp_path: Path) -> None:
    """Of a stopped one, too, it says what is known: that it wrote none."""
    workers = {name: cluster.start(Slow, Demand(name, 1.0)) for name in ("learner/0", "learner/1")}

    async def late() -> None:
        pids = {name: worker.pid.remote() for name, worker in workers.items()}
        found = await cluster.calls.gather(pids, what="starting", deadline_s=100.0)
        os.kill(found["learner/1"], signal.SIGSTOP)
        calls = {name: worker.read_a_pipe_that_nobody_writes.remote() for name, worker in workers.items()}
        try:
            await cluster.calls.gather(calls, what="the update", deadline_s=2.0)
        finally:
            os.kill(found["learner/1"], signal.SIGCONT)

    with pytest.raises(DeadlineError) as caught:
        wait(late())
    first, second = str(caught.value).split("\nlearner/1: ")
    assert "the update: no answer within 2 s from learner/0, learner/1\nlearner/0: it is here:\n" in first
    assert "test_stacks.py" in first.splitlines()[2]
    assert "read_a_pipe_that_nobody_writes" in first.splitlines()[2]
    assert first.endswith(f"all threads: {tmp_path}/logs/learner-0.log")
    assert second == "it wrote no stack, as when it is stopped"


def test_of_a_worker_that_has_not_started_it_says_so(cluster: Cluster, tmp_path: Path) -> None:
    """Ray knows no process of it, and a signal to the process 0 would reach this one."""
    (tmp_path / "logs").mkdir(exist_ok=True)
    (tmp_path / "logs" / "late.log").touch()
    pending = ray.remote(Slow).options(num_cpus=10_000).remote()
    assert wait(stack_of(pending, tmp_path / "logs" / "late.log")) == "its process has not started"
