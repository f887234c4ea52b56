"""Checkpoints of a run: complete or absent, newest first."""

from __future__ import annotations

import json
import shutil
from collections.abc import Awaitable, Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path

from rlsys.config.schema import CheckpointConfig

STATE_FILE = "state.json"


@dataclass(frozen=True)
class RunState:
    """Where a run stands besides its weights: enough to continue at the next step."""

    step: int
    prompt_cursor: int
    kl_coef: float | None = None  # null: as configured
    entropy_coef: float | None = None  # as applied
    entropy_level: float = 0.0
    nonfinite_in_a_row: int = 0
    nonfinite_total: int = 0
    prompts_pending: list[int] = field(default_factory=list)  # places handed out and not trained
    prompts_digest: str = ""  # of all training prompts: the cursor counts places among these
    unscored_in_a_row: int = 0
    unscored_total: int = 0


def checkpoints(run_dir: Path) -> list[Path]:
    """Complete checkpoints, oldest first. One without its state file was cut off while being written."""
    found = (run_dir / "checkpoints").glob("step-*")
    complete = [folder for folder in found if (folder / STATE_FILE).is_file()]
    return sorted(complete, key=lambda folder: int(folder.name.removeprefix("step-")))


def is_due(config: CheckpointConfig, step: int, num_steps: int) -> bool:
    """Whether a checkpoint follows this step."""
    return (config.every > 0 and step % config.every == 0) or (config.last and step == num_steps)


async def save(run_dir: Path, state: RunState, write: Callable[[str], Awaitable[None]], *, keep: int) -> Path:
    """Let `write(folder)` fill a new checkpoint, mark it complete, and remove all but the newest `keep`."""
    folder = run_dir / "checkpoints" / f"step-{state.step:06d}"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    await write(str(folder))
    partial = folder / f".{STATE_FILE}"
    partial.write_text(json.dumps(asdict(state)), encoding="utf-8")
    partial.rename(folder / STATE_FILE)
    for old in checkpoints(run_dir)[: -max(keep, 1)]:
        shutil.rmtree(old)
    return folder


def load_state(folder: Path) -> RunState:
    """The state of a complete checkpoint."""
    return RunState(**json.loads((folder / STATE_FILE).read_text(encoding="utf-8")))
