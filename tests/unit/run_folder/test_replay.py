"""Which dumped steps are kept, and which can be replayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlsys.errors import DataError
from rlsys.run_folder.replay import (
    ReplayFolders,
    dumped_steps,
    read_dump,
    replayable_steps,
    write_arrays,
    write_record,
)
from tests.unit.run_folder.written import saved


def dump(run_dir: Path, step: int, keep: int = 2, resume_step: int = 0) -> Path:
    folder = Path(ReplayFolders(run_dir, keep, resume_step).begin(step))
    write_arrays(folder, 0, {"lengths": np.array([3, 4])})
    write_record(folder, {"num_ranks": 1, "loss": float("nan")})
    return folder


def test_the_newest_are_kept_and_repeated_steps_dropped(tmp_path: Path) -> None:
    folders = ReplayFolders(tmp_path, 2, 0)
    for step in (1, 11, 21):
        folders.begin(step)
    assert sorted(dumped_steps(tmp_path)) == [11, 21]
    ReplayFolders(tmp_path, 2, 20)
    assert sorted(dumped_steps(tmp_path)) == [11]
    dump(tmp_path, 11, resume_step=10)  # the folder of a step that was cut off is in nobody's way


def test_a_step_needs_its_whole_dump_and_the_weights_before(tmp_path: Path) -> None:
    for step in (1, 6, 11):
        dump(tmp_path, step, keep=9, resume_step=100)
    saved(tmp_path, 5, 10)
    (tmp_path / "checkpoints" / "step-000005" / "state.json").unlink()
    assert replayable_steps(tmp_path) == [1, 11]
    (tmp_path / "replay" / "step-000011" / "record.json").unlink()
    assert replayable_steps(tmp_path) == [1]


def test_a_dump_is_read_as_it_was_written_or_refused_by_name(tmp_path: Path) -> None:
    folder = dump(tmp_path, 1)
    record, (arrays,) = read_dump(folder)
    assert np.isnan(record["loss"])
    assert arrays["lengths"].tolist() == [3, 4]
    (folder / "rank-0.npz").write_bytes(b"PK cut off")
    with pytest.raises(DataError, match=f"{folder} is not a whole dump of a step"):
        read_dump(folder)
