"""Checkpoints are complete or absent."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from rlsys.config.schema import CheckpointConfig
from rlsys.run_folder.checkpoint import RunState, checkpoints, is_due, load_state, save


async def write(folder: str) -> None:
    (Path(folder) / "weights").write_text(folder)


def saved(run_dir: Path, *steps: int, keep: int = 10) -> list[str]:
    """Names of the checkpoints after saving `steps` in turn."""
    for step in steps:
        asyncio.run(save(run_dir, RunState(step, prompt_cursor=8 * step), write, keep=keep))
    return [folder.name for folder in checkpoints(run_dir)]


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    assert checkpoints(tmp_path) == []
    assert checkpoints(tmp_path / "nowhere") == []


@pytest.mark.parametrize(
    ("every", "last", "steps"),
    [(0, True, [5]), (2, True, [2, 4, 5]), (2, False, [2, 4]), (0, False, []), (5, True, [5])],
)
def test_they_follow_every_so_many_steps_and_the_last(every: int, last: bool, steps: list[int]) -> None:
    config = CheckpointConfig(every=every, last=last)
    assert [step for step in range(1, 6) if is_due(config, step, 5)] == steps


def test_what_is_saved_is_read_back(tmp_path: Path) -> None:
    folder = asyncio.run(save(tmp_path, RunState(step=5, prompt_cursor=40), write, keep=2))
    assert folder == tmp_path / "checkpoints" / "step-000005"
    assert checkpoints(tmp_path) == [folder]
    assert load_state(folder) == RunState(step=5, prompt_cursor=40)
    assert (folder / "weights").read_text() == str(folder)
    assert {path.name for path in folder.iterdir()} == {"weights", "state.json"}


@pytest.mark.parametrize(
    ("keep", "left"),
    [(2, ["step-000003", "step-000004"]), (1, ["step-000004"]), (0, ["step-000004"])],  # the newest always stays
)
def test_the_newest_are_kept(tmp_path: Path, keep: int, left: list[str]) -> None:
    assert saved(tmp_path, 1, 2, 3, 4, keep=keep) == left
    assert sorted(path.name for path in (tmp_path / "checkpoints").iterdir()) == left


def test_an_old_one_whose_removal_is_cut_off_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path, 1)

    def die(folder: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", lambda folder, ignore_errors=False: None if ignore_errors else die(folder))
    with pytest.raises(KeyboardInterrupt):
        saved(tmp_path, 2, keep=1)
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000002"]


def test_the_newest_is_the_one_with_the_highest_step(tmp_path: Path) -> None:
    assert saved(tmp_path, 999_999, 1_000_000)[-1] == "step-1000000"
    assert saved(tmp_path, 1_000_001, keep=1) == ["step-1000001"]


def test_a_checkpoint_that_was_cut_off_is_no_checkpoint(tmp_path: Path) -> None:
    saved(tmp_path, 1, 2)

    async def die(folder: str) -> None:
        await write(folder)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        asyncio.run(save(tmp_path, RunState(3, 24), die, keep=1))
    assert [folder.name for folder in checkpoints(tmp_path)] == ["step-000001", "step-000002"]  # nothing was removed


def test_a_step_saved_again_replaces_what_was_left_of_it(tmp_path: Path) -> None:
    left = tmp_path / "checkpoints" / "step-000003"
    left.mkdir(parents=True)
    (left / "half").write_text("cut off")
    assert saved(tmp_path, 3) == ["step-000003"]
    assert not (left / "half").exists()
