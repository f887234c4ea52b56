"""Checkpoints of a run: complete or absent, newest first to go on from."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from rlsys.config.schema import CheckpointConfig
from rlsys.run_folder.layout import ADAPTER, CHECKPOINTS, POLICY, STATE
from rlsys.run_folder.whole_file import write_whole


@dataclass(frozen=True)
class RunState:
    """The state of a run besides its weights: all that it needs to continue at the next step."""

    step: int
    prompt_cursor: int  # how many prompts have been handed out
    kl_coef: float | None = None  # None: as configured
    entropy_coef: float | None = None  # as applied; None: as configured
    entropy_level: float = 0.0  # the adaptive coefficient, also while it is not applied
    nonfinite_in_a_row: int = 0
    nonfinite_total: int = 0
    prompts_pending: list[int] = field(default_factory=list)  # positions handed out but not trained yet
    prompts_finished: list[int] = field(default_factory=list)  # positions of the groups in the folder `finished`
    ledger: dict[str, int] = field(default_factory=dict)  # what became of all prompts, see `Orchestrator.ledger`
    prompts_digest: str = ""  # digest of all training prompts: the cursor is a position among exactly these
    unscored_in_a_row: int = 0
    unscored_total: int = 0
    eval_unscored_in_a_row: int = 0
    eval_unscored_total: int = 0
    reward_best: dict[str, float] = field(default_factory=dict)  # the highest value of each reward that ever varied
    started_coef: dict[str, float] = field(default_factory=dict)  # coefficients of kl and entropy as configured
    written_with: dict[str, Any] = field(default_factory=dict)  # options that decide how the checkpoint's files look


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the folders of complete checkpoints, oldest first.

    A folder without its state file was cut off while it was written, and is left out.
    """
    found = (run_dir / CHECKPOINTS).glob("step-*")
    return sorted((folder for folder in found if (folder / STATE).is_file()), key=step_of)


def step_of(path: Path) -> int:
    """Return the step in the name of a file or folder, or 0 if it has none, like `timeline.json`."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else 0


def is_due(config: CheckpointConfig, step: int, num_steps: int) -> bool:
    """Return whether a checkpoint is written after this step."""
    return (config.every > 0 and step % config.every == 0) or (config.last and step == num_steps)


async def save(run_dir: Path, state: RunState, write: Callable[[str], Awaitable[None]], *, keep: int) -> Path:
    """Write a new checkpoint, then remove all but the newest `keep`; return its folder.

    Args:
        run_dir: the run's folder.
        state: what is saved besides the weights.
        write: fills the folder that it is given with the weights.
        keep: how many checkpoints stay; at least the new one.
    """
    folder = run_dir / CHECKPOINTS / f"step-{state.step:06d}"
    # A folder of this step is left from a run that was killed while it wrote it: resuming starts at the last complete
    # one.
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    await write(str(folder))
    write_whole(folder / STATE, json.dumps(asdict(state)))  # last: a checkpoint that has one is whole
    # Without `max`, keep=0 would give [:-0], which is empty, and nothing would ever be removed.
    for old in checkpoints(run_dir)[: -max(keep, 1)]:
        (old / STATE).unlink()  # first: cut off from here on, it is no checkpoint any more
        shutil.rmtree(old)
    return folder


def load_state(folder: Path) -> RunState:
    """Return the state of a complete checkpoint."""
    return RunState(**json.loads((folder / STATE).read_text(encoding="utf-8")))


def model_of(folder: Path) -> Path:
    """Return the model in a checkpoint: whole weights, or an adapter alone where that is all that was trained."""
    return folder / POLICY if (folder / POLICY).is_dir() else folder / ADAPTER
