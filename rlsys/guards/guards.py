"""All guards and alarms of a run together, and the reactions to them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from rlsys.config.schema import Config
from rlsys.errors import RlsysError, SuspectPolicyError
from rlsys.guards.alarms import Alarms
from rlsys.guards.missing_rewards import MissingRewardGuard, NoRewardError
from rlsys.guards.nonfinite import Fetch, NonFiniteGuard, TextOf
from rlsys.guards.pause import Pause
from rlsys.guards.progress import Progress
from rlsys.run_folder.checkpoint import RunState
from rlsys.run_folder.jsonl import read_metrics
from rlsys.run_folder.layout import METRICS

# What ends a run where its alarm's reaction is `stop`; RlsysError for the others. A suspect policy is not saved.
ENDS_WITH: dict[str, type[RlsysError]] = {"unscored": NoRewardError, "mismatch": SuspectPolicyError}


@dataclass(frozen=True)
class Guards:
    """The guards of a run. Other modules call their `record` and `look`; `check` does what is configured about it."""

    nonfinite: NonFiniteGuard
    rewards: MissingRewardGuard  # counts training steps
    eval_rewards: MissingRewardGuard  # counts evaluations
    alarms: Alarms
    pause: Pause
    reactions: Mapping[str, str]  # by the alarms' names
    progress: Progress  # ends the run in order

    @classmethod
    def from_config(cls, config: Config, run_dir: Path, state: RunState, fetch: Fetch, text_of: TextOf) -> Guards:
        """Return the guards of a run; they count on from a checkpoint's `state` and the metrics before it."""
        limit = config.scoring.max_unscored_steps
        earlier = read_metrics(run_dir / METRICS) if state.step > 0 and (run_dir / METRICS).is_file() else []
        return cls(
            NonFiniteGuard(run_dir, config.train.max_nonfinite_steps, fetch, text_of, state),
            MissingRewardGuard(
                "reward/unscored_steps", limit, in_a_row=state.unscored_in_a_row, total=state.unscored_total
            ),
            MissingRewardGuard(
                "eval/unscored", limit, in_a_row=state.eval_unscored_in_a_row, total=state.eval_unscored_total
            ),
            Alarms(config, state.reward_best, earlier),
            Pause(run_dir),
            vars(config.alarms),
            Progress.from_config(config, run_dir, state),
        )

    async def check(self) -> None:
        """Act on what the step has shown: raise where the run ends, wait where it is paused.

        Raises:
            SuspectPolicyError: the alarm `mismatch` stops the run, which then leaves no checkpoint.
            RlsysError: another alarm stops it, or too many evaluations in a row had no valid reward.
        """
        raised = list(self._raised())
        for name, text in raised:
            if self.reactions[name] == "stop":
                raise ENDS_WITH.get(name, RlsysError)(f"{text} (alarms.{name}=stop)")
        if await self.pause.hold([text for name, text in raised if self.reactions[name] == "pause"]):
            for guard in (self.nonfinite, self.rewards, self.eval_rewards):
                guard.in_a_row = 0  # what was wrong may have been put right

    def _raised(self) -> Iterator[tuple[str, str]]:
        """Yield the name and the text of each alarm that is new, or that comes from counts which a checkpoint holds."""
        for guard in (self.nonfinite, self.rewards, self.eval_rewards):
            text = guard.trouble()
            if text is not None:
                yield guard.ALARM, text
        for alarm in self.alarms.take():
            yield alarm.name, f"step {alarm.step}: {alarm.text}"
