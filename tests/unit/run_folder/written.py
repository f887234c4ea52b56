"""Checkpoints with made-up weights, for tests of what is done with their folders."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from rlsys.run_folder.checkpoint import RunState
from rlsys.run_folder.checkpoint_writer import save


async def write(folder: str) -> None:
    for name, size in {"policy/model.safetensors": 500, "learner/rank_0.pt": 300}.items():
        (Path(folder) / name).parent.mkdir()
        (Path(folder) / name).write_bytes(bytes(size))


def saved(run_dir: Path, *steps: int, keep: int = 10, also: Sequence[int] = ()) -> list[str]:
    """Save `steps` in turn; return the names of everything that is then in `checkpoints/`."""
    for step in steps:
        asyncio.run(save(run_dir, RunState(step, prompt_cursor=8 * step), write, keep=keep, also=also))
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())
