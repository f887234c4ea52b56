"""`nonfinite/step-N.jsonl`: the trajectories that brought NaN or infinity into a step."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from rlsys.run_folder.jsonl import row_writer
from rlsys.run_folder.layout import NONFINITE
from rlsys.types import NonFiniteTrajectory, ScoredGroup, Trajectory


def nonfinite_folder(run_dir: Path) -> Path:
    """Return the folder of these files."""
    return run_dir / NONFINITE


def write_nonfinite(run_dir: Path, step: int, rows: Iterable[dict[str, Any]]) -> None:
    """Write the file of a step."""
    folder = nonfinite_folder(run_dir)
    folder.mkdir(parents=True, exist_ok=True)
    with row_writer(folder / f"step-{step:06d}.jsonl") as write_rows:
        write_rows(rows)


def nonfinite_row(
    found: NonFiniteTrajectory, group: ScoredGroup, trajectory: Trajectory, response: str
) -> dict[str, Any]:
    """Return what is written about one trajectory.

    Args:
        found: what was not finite, and which sample of the group it is.
        group: the trajectory's group.
        trajectory: its token arrays.
        response: its text.
    """
    rollout, reward = group.rollout, group.rewards[found.sample]
    return {
        "what": found.what,
        "prompt_index": rollout.prompt.index,
        "prompt": rollout.prompt.text,
        "response": response,
        "reward": reward.total,
        "details": {name: part.detail for name, part in reward.parts.items() if part.detail},
        "policy_version": rollout.summaries[found.sample].policy_version,
        "token_ids": trajectory.token_ids.tolist(),
        "loss_mask": trajectory.loss_mask.tolist(),
        # JSON has no NaN or infinity, so numbers are written as text.
        "behavior_logprobs": [repr(float(value)) for value in trajectory.behavior_logprobs],
    }
