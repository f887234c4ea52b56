"""What happens to a step that met NaN or infinity: it is not applied, it is written down, and several end the run."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path

from rlsys.errors import RlsysError
from rlsys.metrics.step import Metrics
from rlsys.run_folder.checkpoint import RunState
from rlsys.run_folder.rollouts import SURROGATES
from rlsys.types import Offender, Reward, RolloutGroup, TextRef, Trajectory

MAX_DUMPED = 64
"""Trajectories written for one step; the rest are counted."""


class NonFiniteGuard:
    """Counts steps that were not applied and keeps what brought them down under `run_dir/nonfinite/`."""

    def __init__(
        self,
        run_dir: Path,
        limit: int,
        fetch: Callable[[RolloutGroup], list[Trajectory]],
        text_of: Callable[[TextRef | None], str],
        state: RunState,
    ) -> None:
        self._folder = run_dir / "nonfinite"
        self._limit = limit
        self._fetch = fetch
        self._text_of = text_of
        self.in_a_row = state.nonfinite_in_a_row
        self.total = state.nonfinite_total

    def record(
        self,
        step: int,
        offenders: Sequence[Offender],
        groups: Sequence[RolloutGroup],
        rewards: Sequence[Sequence[Reward]],
    ) -> Metrics:
        """Write the offending trajectories of a step; the metrics say how many there were, also when none."""
        if offenders:
            self.total += 1
            self.in_a_row += 1
            self._dump(step, offenders, groups, rewards)
        else:
            self.in_a_row = 0
        return {"nonfinite/trajectories": float(len(offenders)), "nonfinite/steps": float(self.total)}

    def check(self) -> None:
        """Raise RlsysError when too many steps in a row were not applied."""
        if self.in_a_row >= self._limit:
            raise RlsysError(
                f"{self.in_a_row} steps in a row met NaN or infinity and were not applied "
                f"(train.max_nonfinite_steps={self._limit}); the trajectories are in {self._folder}. Look at their "
                "field 'what': a reward function's own result, the engine's or the learner's log-probability, or the "
                "gradient (then lower learner.lr or learner.max_grad_norm)"
            )

    def _dump(
        self,
        step: int,
        offenders: Sequence[Offender],
        groups: Sequence[RolloutGroup],
        rewards: Sequence[Sequence[Reward]],
    ) -> None:
        self._folder.mkdir(parents=True, exist_ok=True)
        path = self._folder / f"step-{step:06d}.jsonl"
        with path.open("w", encoding="utf-8", errors=SURROGATES) as file:
            for offender in offenders[:MAX_DUMPED]:
                group, reward = groups[offender.group], rewards[offender.group][offender.sample]
                trajectory = self._fetch(group)[offender.sample]
                row = {
                    "what": offender.what,
                    "prompt_index": group.prompt.index,
                    "prompt": group.prompt.text,
                    "response": self._text_of(reward.response),
                    "reward": reward.total,
                    "details": {name: part.detail for name, part in reward.parts.items() if part.detail},
                    "policy_version": group.summaries[offender.sample].policy_version,
                    "token_ids": trajectory.token_ids.tolist(),
                    "loss_mask": trajectory.loss_mask.tolist(),
                    "behavior_logprobs": [repr(float(value)) for value in trajectory.behavior_logprobs],
                }
                file.write(json.dumps(row, ensure_ascii=False, default=str) + "\n")
