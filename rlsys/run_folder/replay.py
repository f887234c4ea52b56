"""`replay/step-N/`: the batches of some steps and what the learner computed from them, for `rlsys replay`.

A file of each rank holds its trajectories as arrays; the record of rank 0 beside it holds the rest.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.errors import DataError
from rlsys.run_folder.checkpoint import checkpoints, step_of
from rlsys.run_folder.layout import REPLAY
from rlsys.run_folder.whole_file import write_whole

RECORD = "record.json"  # written last: a folder that has one is whole


class ReplayFolders:
    """The folders of a run's dumped steps; as many are kept as checkpoints, since a step is replayed from one."""

    def __init__(self, run_dir: Path, keep: int, resume_step: int) -> None:
        """Keep the newest `keep`; drop those of the steps that a run which resumes after `resume_step` repeats."""
        self._run_dir = run_dir
        self._keep = keep
        for step, folder in dumped_steps(run_dir).items():
            if step > resume_step:
                shutil.rmtree(folder)

    def begin(self, step: int) -> str:
        """Make an empty folder for a step, in place of the oldest; return it."""
        found = dumped_steps(self._run_dir)
        for old in sorted(found)[: max(0, len(found) - self._keep + 1)]:
            shutil.rmtree(found[old])
        folder = self._run_dir / REPLAY / f"step-{step:06d}"
        folder.mkdir(parents=True)
        return str(folder)


def dumped_steps(run_dir: Path) -> dict[int, Path]:
    """Return the folders by their steps, cut-off ones too."""
    return {step_of(folder): folder for folder in (run_dir / REPLAY).glob("step-*")}


def replayable_steps(run_dir: Path) -> list[int]:
    """Return the steps with a whole dump, of which the weights before are there too."""
    saved = {step_of(folder) for folder in checkpoints(run_dir)}
    whole = [step for step, folder in dumped_steps(run_dir).items() if (folder / RECORD).is_file()]
    return sorted(step for step in whole if step == 1 or step - 1 in saved)


def write_arrays(folder: Path, rank: int, arrays: Mapping[str, np.ndarray]) -> None:
    """Write one rank's arrays. On a node that does not share the run's folder they stay there."""
    folder.mkdir(parents=True, exist_ok=True)
    np.savez(folder / f"rank-{rank}.npz", allow_pickle=False, **arrays)


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write what stands beside the arrays, once every rank has written its own."""
    write_whole(folder / RECORD, json.dumps(record))


def read_dump(folder: Path) -> tuple[dict[str, Any], list[dict[str, np.ndarray]]]:
    """Return a step's record, and the arrays of each rank.

    Raises:
        DataError: a file is missing or cannot be read.
    """
    try:
        record = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        arrays = []
        for rank in range(record["num_ranks"]):
            with np.load(folder / f"rank-{rank}.npz", allow_pickle=False) as file:
                arrays.append(dict(file))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{folder} is not a whole dump of a step: {error}") from error
    return record, arrays
