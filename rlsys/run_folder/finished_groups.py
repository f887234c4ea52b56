"""Groups that were finished and not trained yet, in the folder of a checkpoint: one file each, arrays and facts.

Sampling them again would waste the work, and favour short responses: the long ones are those that were not ready.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.run_folder.layout import FINISHED
from rlsys.run_folder.room import naming_full_disk
from rlsys.types import (
    EpisodeRecord,
    PolicyTurn,
    Reward,
    RewardPart,
    Trajectory,
    TrajectorySummary,
    VersionSpan,
)


@dataclass(frozen=True)
class FinishedGroup:
    """A group with everything that a step needs to train it; `position` is its prompt's place in the stream."""

    position: int
    trajectories: Sequence[Trajectory]
    summaries: Sequence[TrajectorySummary]
    rewards: Sequence[Reward]  # without references to their texts
    texts: Sequence[str]  # of the responses; empty where scoring kept none
    baseline: Reward | None
    ref_logprobs: Sequence[np.ndarray] | None  # [L] float32 each
    kl_sums: Sequence[float]
    logged: Mapping[str, float]
    made_with: str  # digest of the options that decide what such a group is


def write_group(folder: Path, group: FinishedGroup) -> None:
    """Write one group into a checkpoint's folder. Raises NoRoomError when the disk is full."""
    facts = {
        "summaries": [asdict(summary) for summary in group.summaries],
        "trajectories": [
            {
                "versions": [asdict(span) for span in t.versions],
                "finish_reason": t.finish_reason,
                "engine": t.engine,
                "episode": None if t.episode is None else asdict(t.episode),
            }
            for t in group.trajectories
        ],
        "rewards": [_reward_facts(reward) for reward in group.rewards],
        "texts": list(group.texts),
        "baseline": None if group.baseline is None else _reward_facts(group.baseline),
        "kl_sums": list(group.kl_sums),
        "logged": dict(group.logged),
        "made_with": group.made_with,
    }
    arrays: dict[str, Any] = {"facts": np.frombuffer(json.dumps(facts, default=str).encode(), dtype=np.uint8)}
    for number, trajectory in enumerate(group.trajectories):
        arrays[f"{number}/token_ids"] = trajectory.token_ids
        arrays[f"{number}/loss_mask"] = trajectory.loss_mask
        arrays[f"{number}/behavior_logprobs"] = trajectory.behavior_logprobs
    for number, logprobs in enumerate(group.ref_logprobs or ()):
        arrays[f"{number}/ref_logprobs"] = logprobs
    target = folder / FINISHED / f"prompt-{group.position:09d}.npz"
    with naming_full_disk(target):
        target.parent.mkdir(exist_ok=True)
        with target.open("wb") as file:
            np.savez(file, **arrays)


def read_groups(folder: Path) -> list[FinishedGroup]:
    """Return the groups in a checkpoint's folder, in the order of their prompts."""
    return [_read_group(path) for path in sorted((folder / FINISHED).glob("prompt-*.npz"))]


def _read_group(path: Path) -> FinishedGroup:
    with np.load(path, allow_pickle=False) as arrays:
        facts = json.loads(arrays["facts"].tobytes())
        trajectories = [
            Trajectory(
                token_ids=arrays[f"{number}/token_ids"],
                loss_mask=arrays[f"{number}/loss_mask"],
                behavior_logprobs=arrays[f"{number}/behavior_logprobs"],
                versions=tuple(VersionSpan(**span) for span in of_one["versions"]),
                finish_reason=of_one["finish_reason"],
                engine=of_one["engine"],
                episode=_episode(of_one.get("episode")),
            )
            for number, of_one in enumerate(facts["trajectories"])
        ]
        has_reference = "0/ref_logprobs" in arrays
        ref_logprobs = [arrays[f"{number}/ref_logprobs"] for number in range(len(trajectories) * has_reference)]
    return FinishedGroup(
        position=int(path.stem.removeprefix("prompt-")),
        trajectories=trajectories,
        summaries=[TrajectorySummary(**summary) for summary in facts["summaries"]],
        rewards=[_reward(reward) for reward in facts["rewards"]],
        texts=facts["texts"],
        baseline=None if facts["baseline"] is None else _reward(facts["baseline"]),
        ref_logprobs=ref_logprobs if has_reference else None,
        kl_sums=facts["kl_sums"],
        logged=facts["logged"],
        made_with=facts["made_with"],
    )


def _episode(facts: Mapping[str, Any] | None) -> EpisodeRecord | None:
    if facts is None:
        return None
    return EpisodeRecord(**{**facts, "turns": tuple(PolicyTurn(**turn) for turn in facts["turns"])})


def _reward_facts(reward: Reward) -> dict[str, Any]:
    return {
        "total": reward.total,
        "outcome": reward.outcome,
        "parts": {name: asdict(part) for name, part in reward.parts.items()},
        "extra": dict(reward.extra),
    }


def _reward(facts: Mapping[str, Any]) -> Reward:
    parts = {name: RewardPart(**part) for name, part in facts["parts"].items()}
    return Reward(facts["total"], parts, facts["outcome"], extra=facts["extra"])
