"""All guards of a run together."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from rlsys.config.schema import Config
from rlsys.guards.missing_rewards import MissingRewardGuard
from rlsys.guards.nonfinite import Fetch, NonFiniteGuard, TextOf
from rlsys.guards.progress import Progress
from rlsys.guards.signals import SignalWatch
from rlsys.run_folder.checkpoint import RunState


@dataclass(frozen=True)
class Guards:
    """The guards of a run. Other modules call their `record`; `check` ends a run that cannot go on."""

    nonfinite: NonFiniteGuard
    rewards: MissingRewardGuard  # counts training steps
    eval_rewards: MissingRewardGuard  # counts evaluations
    signals: SignalWatch  # only warns
    progress: Progress  # ends the run in order

    @classmethod
    def from_config(cls, config: Config, run_dir: Path, state: RunState, fetch: Fetch, text_of: TextOf) -> Guards:
        """Return the guards of a run; they count on from a checkpoint's `state`."""
        limit = config.scoring.max_unscored_steps
        return cls(
            NonFiniteGuard(run_dir, config.train.max_nonfinite_steps, fetch, text_of, state),
            MissingRewardGuard(
                "reward/unscored_steps", limit, in_a_row=state.unscored_in_a_row, total=state.unscored_total
            ),
            MissingRewardGuard(
                "eval/unscored", limit, in_a_row=state.eval_unscored_in_a_row, total=state.eval_unscored_total
            ),
            SignalWatch(config, state.reward_best),
            Progress.from_config(config, run_dir, state),
        )

    def check(self) -> None:
        """Raise RlsysError when too many steps or evaluations in a row were unusable."""
        for guard in (self.nonfinite, self.rewards, self.eval_rewards):
            guard.check()
