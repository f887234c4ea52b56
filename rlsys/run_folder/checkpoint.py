"""Checkpoints of a run as readers see them: whole, or passed over with a reason; the newest is the one to go on from.

A checkpoint is the folder `checkpoints/step-000010`. Entries with other names are not ours: they are neither read nor
removed. `checkpoint_writer.py` writes it.
"""

from __future__ import annotations

import json
import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlsys.errors import ConfigError
from rlsys.run_folder.layout import ADAPTER, CHECKPOINTS, MANIFEST, POLICY, STATE
from rlsys.run_folder.manifest import find_damage

FORMAT = 2  # of a checkpoint's folder; format 1 had no manifest, and its state does not name the format
NAME = re.compile(r"step-(\d{6,})")

logger = logging.getLogger(__name__)


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
    progress: dict[str, dict[str, Any]] = field(default_factory=dict)  # of `guards.progress`, by what uses it
    written_with: dict[str, Any] = field(default_factory=dict)  # options that decide how the checkpoint's files look


def checkpoint_entries(run_dir: Path) -> list[Path]:
    """Return everything in `checkpoints/` that has the name of a checkpoint, whole or not, in order of steps."""
    folder = run_dir / CHECKPOINTS
    found = folder.iterdir() if folder.is_dir() else ()
    return sorted((path for path in found if NAME.fullmatch(path.name)), key=step_of)


def checkpoint_path(run_dir: Path, step: int) -> Path:
    """Return the folder of the checkpoint after a step, which may not exist."""
    return run_dir / CHECKPOINTS / f"step-{step:06d}"


def converted_path(folder: Path) -> Path:
    """Return where a checkpoint is converted for other ranks while it is loaded; a name that no reader takes."""
    return folder.with_name(f".{folder.name}.converted")


def checkpoints(run_dir: Path) -> list[Path]:
    """Return the folders of whole checkpoints, oldest first. Of their files only the sizes are checked."""
    return [folder for folder in checkpoint_entries(run_dir) if damage_of(folder, content=False) is None]


def newest(run_dir: Path) -> Path | None:
    """Return the newest whole checkpoint, every byte of it checked, or None where none was ever finished.

    Those that are passed over are logged, each with its reason.

    Raises:
        ConfigError: there are finished checkpoints, and none of them is whole any more.
    """
    damaged = []
    for folder in reversed(checkpoint_entries(run_dir)):
        reason = damage_of(folder, content=True)
        if reason is None:
            return folder
        logger.warning("the checkpoint %s is passed over: %s", folder, reason)
        if _was_finished(folder):
            damaged.append(f"{folder.name}: {reason}")
    if damaged:
        raise ConfigError(
            f"{run_dir / CHECKPOINTS} has no whole checkpoint ({'; '.join(damaged)}): restore one, choose another "
            "run_dir for a new run, or remove these to start over"
        )
    return None


def damage_of(folder: Path, *, content: bool) -> str | None:
    """Return why a checkpoint cannot be used, or None; with `content` every byte of it is checked."""
    try:
        if not folder.is_dir():
            return "it is not a folder"
        if not (folder / STATE).is_file():
            return f"{STATE} is missing, as when writing it was cut off"
        number, state = _read_state(folder)
        if number > FORMAT:
            return f"its format is {number}, of a later version of rlsys; this version reads up to {FORMAT}"
        if RunState(**state).step != step_of(folder):
            return f"{STATE} is that of step {state['step']}"
        return None if number == 1 else find_damage(folder, content=content)
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"it cannot be read: {error}"


def load_state(folder: Path) -> RunState:
    """Return the state in a whole checkpoint."""
    return RunState(**_read_state(folder)[1])


def step_of(path: Path) -> int:
    """Return the step in the name of a file or folder, or 0 if it has none, like `timeline.json`."""
    numbers = re.findall(r"\d+", path.stem)
    return int(numbers[-1]) if numbers else 0


def model_of(folder: Path) -> Path:
    """Return the model in a checkpoint: whole weights, or an adapter alone where that is all that was trained."""
    return folder / POLICY if (folder / POLICY).is_dir() else folder / ADAPTER


def _read_state(folder: Path) -> tuple[int, dict[str, Any]]:
    """Return the number of a checkpoint's format, and the fields of its state."""
    state = json.loads((folder / STATE).read_text(encoding="utf-8"))
    return state.pop("format", 1), state


def _was_finished(folder: Path) -> bool:
    """Return whether an entry may have been a whole checkpoint once; writing in format 1 ended with the state."""
    try:
        return (folder / STATE).exists() or (folder / MANIFEST).exists()
    except OSError:
        return True  # it cannot be known
