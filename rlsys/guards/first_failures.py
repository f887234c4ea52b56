"""What reward functions failed of, said once a function and outcome: the counts are in the metrics of every step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlsys.types import FAILURES, Reward


class FirstFailures:
    """Tells of each reward's first error and first timeout."""

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._known: set[tuple[str, str]] = set()

    def tell(self, step: int, rewards: Sequence[Sequence[Reward]]) -> None:
        """Look through a step's rewards."""
        failed = (reward for group in rewards for reward in group if reward.outcome in FAILURES)
        for label, part in (item for reward in failed for item in reward.parts.items()):
            if part.outcome not in FAILURES or (label, part.outcome) in self._known:
                continue
            self._known.add((label, part.outcome))
            self._say(
                f"step {step}: first {part.outcome} of reward {label}, counted in reward/{label}/{part.outcome} from "
                f"here on: {part.detail}"
            )
