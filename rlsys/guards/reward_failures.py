"""The first failure of every reward function, logged once per function and outcome; metrics count the rest."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from rlsys.types import FAILURES, Reward

logger = logging.getLogger(__name__)


class RewardFailureReporter:
    """The reporter of each reward function's first failure of each kind, in the log."""

    def __init__(self) -> None:
        self._known: set[tuple[str, str]] = set()

    def report(self, step: int, rewards: Sequence[Sequence[Reward]]) -> None:
        """Look through a step's rewards for failures that were not logged before."""
        failed = (reward for group in rewards for reward in group if reward.outcome in FAILURES)
        for label, part in (item for reward in failed for item in reward.parts.items()):
            if part.outcome not in FAILURES or (label, part.outcome) in self._known:
                continue
            self._known.add((label, part.outcome))
            logger.warning(
                "step %d: first %s of reward %s, counted in reward/%s/%s from here on: %s",
                step,
                part.outcome,
                label,
                label,
                part.outcome,
                part.detail,
            )
