"""A run is started again when it loses what nothing replaces: as often as may be, and not for other failures."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from rlsys.config.compose import load_config
from rlsys.errors import ConfigError, DeadlineError, WeightMismatchError, WorkerDiedError, WorkerError
from rlsys.preflight.prepared import Prepared
from rlsys.train import train_to_the_end

DIED = WorkerDiedError("learner/1 is gone", "learner/1")


class Lives:
    """Runs that end as told: at their start, in training (None: well), one after the other."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *ends: tuple[str, Exception | None]) -> None:
        self.ends = list(ends)
        self.resumes: list[str] = []
        self.starts = 0
        self.preimports: list[Any] = []
        self.engines: list[int] = []
        self.asked_for = 0  # engines, while the first run lives
        monkeypatch.setattr("rlsys.train.open_run", self._open)

    def play(self, tmp_path: Path, max_restarts: int = 5) -> None:
        config = load_config([f"cluster.max_restarts={max_restarts}"])
        prepared: Any = Prepared(config, *[SimpleNamespace()] * (len(Prepared.__dataclass_fields__) - 1))
        servers: Any = "servers"

        def count() -> None:
            self.starts += 1

        display: Any = None
        asyncio.run(train_to_the_end(prepared, tmp_path, display, servers, on_start=count))

    @contextlib.asynccontextmanager
    async def _open(self, prepared: Prepared, run_dir: Path, display: Any, preimport: Any) -> AsyncIterator[Any]:
        self.resumes.append(prepared.config.resume)
        self.engines.append(prepared.config.rollout.num_workers)
        self.preimports.append(preimport)
        where, error = self.ends.pop(0)
        if where == "start" and error is not None:
            raise error

        async def supervise(training: Any) -> None:
            training.close()
            if error is not None:
                raise error

        wanted = prepared.config
        if self.asked_for:
            wanted = replace(wanted, rollout=replace(wanted.rollout, num_workers=self.asked_for))
        yield SimpleNamespace(supervise=supervise, scaling=SimpleNamespace(config=wanted))


@pytest.mark.parametrize("error", [DIED, DeadlineError("learner update: no answer within 5 s from learner/0")])
def test_a_lost_rank_and_a_hung_one_start_it_again_from_its_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    lives = Lives(monkeypatch, ("training", error), ("start", error), ("training", None))
    lives.play(tmp_path)
    assert (lives.ends, lives.starts) == ([], 2)
    assert lives.resumes == ["never", "auto", "auto"]
    assert lives.preimports == ["servers"] * 3  # a worker of a later start is forked from what the first has imported
    assert f"the run is started again, from its newest checkpoint, because of this: {error}" in caplog.text


@pytest.mark.parametrize("error", [WorkerError("a bug"), WeightMismatchError("other weights"), RuntimeError("a bug")])
def test_what_would_happen_again_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    lives = Lives(monkeypatch, ("training", error), ("training", None))
    with pytest.raises(type(error)):
        lives.play(tmp_path)
    assert lives.starts == 1


@pytest.mark.parametrize("error", [DIED, DeadlineError("late"), ConfigError("no room")])
def test_a_run_that_never_started_fails_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    lives = Lives(monkeypatch, ("start", error), ("training", None))
    with pytest.raises(type(error)):
        lives.play(tmp_path)
    assert lives.resumes == ["never"]


def test_it_is_not_started_again_more_often_than_may_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lives = Lives(monkeypatch, *[("training", DIED)] * 4)
    with pytest.raises(WorkerDiedError):
        lives.play(tmp_path, max_restarts=2)
    assert lives.starts == 3


def test_it_is_started_again_with_the_engines_that_were_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lives = Lives(monkeypatch, ("training", DIED), ("training", None))
    lives.asked_for = 3
    lives.play(tmp_path)
    assert lives.engines == [1, 3]
