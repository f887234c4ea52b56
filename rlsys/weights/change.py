"""Whether an engine's log-probabilities of a fixed text change by what the learner's change, from version to version.

Each side rounds in its own way, but in the same way from one version to the next. So what the two change by is compared
more finely than what they compute: in float32 even a step at a learning rate of 1e-6 shows. Where a change is smaller
than the sides round, as in bfloat16 often, nothing follows from it, and the checksums of the broadcast must do.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rlsys.weights.verify import ABSOLUTE

# Accepted gaps between the two changes, in multiples of the sides' distance at the first version, and as a share of the
# learner's change.
NOISE = 8.0
SHARE = {"float32": 0.005, "bfloat16": 0.1}
# Smallest distance that two sides are taken to have: so much of the log-probabilities' size, and at least so many nats,
# since the logits of a text that the policy knows by heart are rounded like any others.
ROUNDING = {"float32": 2**-23, "bfloat16": 2**-8}
LEAST = {"float32": 5e-7, "bfloat16": 1e-2}
# An engine whose change is below this share of the learner's has not changed.
UNCHANGED = 0.1


@dataclass(frozen=True)
class Scored:
    """Log-probabilities of the text at one policy version, [L - 1] from each side."""

    policy_version: int
    learned: np.ndarray
    served: np.ndarray

    @property
    def gap(self) -> np.ndarray:
        """The engine's minus the learner's."""
        return self.served - self.learned


class EngineChange:
    """What one engine and the learner gave so far, and the judgement of each further version."""

    def __init__(self, dtype: str) -> None:
        """`dtype` is the coarser of both sides'."""
        self._dtype = dtype
        self._first: Scored | None = None
        self._last: Scored | None = None

    def judge(self, found: Scored) -> str | None:
        """Return what is wrong with the engine at a version, or None; later versions are compared with it.

        Small faults of successive versions add up, so a version is compared with the last one and with the first.
        """
        problem = self._judge_first(found) if self._first is None else None
        for before in (self._last, self._first):
            if before is not None and problem is None:
                problem = self._compare(before, found)
        if problem is None:  # what is wrong is no measure for what comes after
            self._first = self._first or found
            self._last = found
        return problem

    def _judge_first(self, found: Scored) -> str | None:
        if not np.isfinite(found.gap).all():
            return "a log-probability is not finite: weights or logits hold NaN or inf"
        if _size(found.gap) <= ABSOLUTE[self._dtype]:
            return None
        return (
            f"it is {_size(found.gap):.2e} from the learner's (median; accepted: {ABSOLUTE[self._dtype]:g}) before "
            "anything was trained since the run began or was resumed: engine and learner compute different models"
        )

    def _compare(self, before: Scored, found: Scored) -> str | None:
        if not np.isfinite(found.gap).all():
            return "a log-probability is not finite: weights or logits hold NaN or inf"
        moved, changed = found.learned - before.learned, found.served - before.served
        assert self._first is not None
        noise = max(_size(self._first.gap), ROUNDING[self._dtype] * _size(found.learned), LEAST[self._dtype])
        accepted = NOISE * noise + SHARE[self._dtype] * _size(moved)
        gap = _size(changed - moved)
        if gap <= accepted:
            return None
        since = (
            f"since version {before.policy_version} the learner's have changed by {_size(moved):.2e}, its by "
            f"{_size(changed):.2e}, and {gap:.2e} lies between the two (medians; accepted: {accepted:.2e})"
        )
        if _size(changed) < UNCHANGED * _size(moved):
            return f"{since}: it still computes with older weights"
        return f"{since}: it does not use all of the weights it received, as a layer or a tied output layer's copy"


def _size(values: np.ndarray) -> float:
    """Return the median size: a single token may be far off where a router or a rounding tips over."""
    return float(np.median(np.abs(values)))
