"""Requests for another number of engines, as a run takes them."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from rlsys.build import scaling as module
from rlsys.build.scaling import Scaling, resized
from rlsys.config.compose import load_config
from rlsys.errors import ConfigError, WorkerDiedError
from rlsys.run_folder.scale_requests import DONE, REFUSED, TAKEN, ScaleRequests, read
from rlsys.runtime.background import cancel
from tests.unit.virtual_time import run_virtual


class Scaler:
    """Takes ten seconds, and fails as it is told to."""

    def __init__(self) -> None:
        self.wanted: list[int] = []
        self.failure: str | None = None
        self.error: Exception | None = None

    async def resize(self, wanted: int, report: Callable[[str], None]) -> str | None:
        report("rollout/1 starts")
        await asyncio.sleep(10.0)
        if self.error is not None:
            raise self.error
        self.wanted.append(wanted)
        return self.failure


class Scene:
    def __init__(self, run_dir: Path) -> None:
        self.scaler, self.requests = Scaler(), ScaleRequests(run_dir)
        self.scaling = Scaling(load_config([]), run_dir, self.scaler)

    def play(self, *pauses: tuple[float, Callable[[], None]]) -> None:
        async def main() -> None:
            watching = asyncio.ensure_future(self.scaling.watch())
            for pause, check in pauses:
                await asyncio.sleep(pause)
                check()
            await cancel([watching])

        run_virtual(main())


def state(file: Path) -> tuple[str, str]:
    request = read(file)
    assert request is not None
    return request.state, request.text


def test_two_requests_at_once_are_done_one_after_the_other(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    first, second = scene.requests.ask(4), scene.requests.ask(2)

    def under_way() -> None:
        assert state(first) == (TAKEN, "rollout/1 starts")
        assert state(second) == ("asked", "waiting for the run to take the request")

    scene.play((5.0, under_way), (20.0, lambda: None))
    assert [state(file) for file in (first, second)] == [(DONE, f"the run has rollout={n}") for n in (4, 2)]
    assert scene.scaler.wanted == [4, 2]
    assert scene.scaling.config.rollout.num_workers == 2  # with which the run is started again


def test_what_a_run_could_not_start_with_is_refused(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    file = scene.requests.ask(10**6)
    scene.play((5.0, lambda: None))
    assert state(file)[0] == REFUSED
    assert "rollout.num_workers=1000000 is more than train.prompts_per_step" in state(file)[1]
    assert scene.scaler.wanted == []


def test_an_engine_that_cannot_join_leaves_the_run_as_it_was(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.scaler.failure = "rollout/1 could not join"
    file = scene.requests.ask(2)
    scene.play((15.0, lambda: None))
    assert state(file) == (REFUSED, "rollout/1 could not join")
    assert scene.scaling.config.rollout.num_workers == 1


def test_the_death_of_a_rank_meanwhile_is_the_run_s(tmp_path: Path) -> None:
    scene = Scene(tmp_path)
    scene.scaler.error = WorkerDiedError("learner/0 is gone", "learner/0")
    file = scene.requests.ask(2)
    with pytest.raises(WorkerDiedError):
        run_virtual(scene.scaling.watch())
    assert state(file)[0] == TAKEN
    Scaling(load_config([]), tmp_path, scene.scaler)
    assert read(file) is None  # the command that waits for it notices


def test_a_full_disk_ends_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    scene = Scene(tmp_path)
    scene.requests.ask(2)
    monkeypatch.setattr(module, "answer", full)
    with caplog.at_level(logging.WARNING):
        scene.play((11.5, lambda: None))
    assert scene.scaler.wanted == [2]
    assert "No space left on device" in caplog.text


def test_more_engines_use_more_gpus_of_a_cluster_and_not_of_a_local_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    gpus = ["cluster.num_gpus=4", "rollout.tensor_parallel_size=2", "algorithm.kl.coef=0", "learner.num_workers=2"]
    joined = resized(load_config([*gpus, "cluster.address=10.0.0.1:6379"]), 3)
    assert (joined.rollout.num_workers, joined.cluster.num_gpus) == (3, 8)
    assert resized(joined, 1).cluster.num_gpus == 8
    with pytest.raises(ConfigError, match=r"needs 8 GPUs .*, but cluster.num_gpus=4"):
        resized(load_config(gpus), 3)
