"""The driver's side of the policy's ranks, without Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlsys.config.learner_schema import LearnerConfig
from rlsys.errors import DeadlineError, NoRoomError
from rlsys.learner.policy_group import PolicyGroup
from tests.unit.virtual_time import run_virtual


class Worker:
    """A rank that answers each call with its number and the method's name."""

    def __init__(self, rank: int) -> None:
        self._rank = rank

    def __getattr__(self, method: str) -> Any:
        return SimpleNamespace(remote=lambda *_: (f"{method} of rank {self._rank}", [7]))


class Cluster:
    """Two workers whose calls are their answers."""

    def __init__(self) -> None:
        self.calls = self
        self.gathered: list[Mapping[str, Any]] = []

    def start(self, kind: type, demand: Any, rank: int, setup: Any) -> Worker:
        return Worker(rank)

    async def gather(self, calls: Mapping[str, Any], **_: Any) -> Mapping[str, Any]:
        self.gathered.append(calls)
        return calls


@pytest.mark.parametrize(
    ("backend", "info", "num_asked"), [("ipc", ("export_weights of rank 0", [7]), 2), ("nccl", ({}, ()), 0)]
)
def test_over_ipc_every_rank_exports_the_weights_at_each_broadcast(backend: str, info: Any, num_asked: int) -> None:
    cluster = Cluster()
    demands = [SimpleNamespace(name=f"learner/{rank}") for rank in range(2)]
    group = PolicyGroup(cluster, SimpleNamespace(learner=LearnerConfig()), demands)  # type: ignore[arg-type]
    assert asyncio.run(group.weight_update_info(backend)) == info
    assert sum(len(calls) for calls in cluster.gathered) == num_asked


class Saving(Cluster):
    """Ranks that have written their files one after the other, and what failed."""

    def __init__(self, *answers: tuple[Any, Any]) -> None:
        super().__init__()
        self.answers = list(answers)
        self.events: list[str] = []

    async def gather(self, calls: Mapping[str, Any], **options: Any) -> Mapping[str, Any]:
        self.events.append(options["what"])
        is_copy = options["what"] == "saving the learner"
        return dict(zip(calls, (None, None) if is_copy else self.answers.pop(0), strict=True))


def saved(cluster: Saving, folder: Path, **options: Any) -> None:
    demands = [SimpleNamespace(name=f"learner/{rank}") for rank in range(2)]
    group = PolicyGroup(cluster, SimpleNamespace(learner=LearnerConfig(**options)), demands)  # type: ignore[arg-type]
    run_virtual(group.save(str(folder), lambda: cluster.events.append("begun")))


def test_the_ranks_are_asked_until_all_have_written(tmp_path: Path) -> None:
    cluster = Saving((None, None), (None, []), ([], []))
    saved(cluster, tmp_path / "new")
    assert cluster.events == ["saving the learner", "begun", *["writing the learner's checkpoint"] * 3]
    assert (tmp_path / "new").is_dir()


def test_what_failed_on_any_rank_is_raised_once_all_have_ended(tmp_path: Path) -> None:
    full, broken = [("learner/0: full", True)], [("learner/1: broken", False)]
    cluster = Saving((full, None), (full, broken))
    with pytest.raises(NoRoomError, match="learner/0: full; learner/1: broken"):
        saved(cluster, tmp_path)
    assert cluster.answers == []


def test_files_that_are_never_written_are_an_error_with_a_deadline(tmp_path: Path) -> None:
    cluster = Saving(*[(None, [])] * 100)
    with pytest.raises(DeadlineError, match=r"writing the learner's checkpoint: not written within 20 s by learner/0$"):
        saved(cluster, tmp_path, deadline_s=10.0)
