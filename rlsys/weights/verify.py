"""Comparison of engine and learner on the trained tokens, and the likely cause when they disagree.

Kernels of engine and learner round differently, in bfloat16 by many nats for single tokens, and every model does so in
its own measure. So no single token is judged but the mean over a step, and its bound comes from the run itself: from
the differences of its first step, when nothing has been trained yet. Weights that are a little stale do not show here;
the checksums of each broadcast and the canary text are there for them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from rlsys.errors import WeightMismatchError
from rlsys.types import Trajectory

# Bounds on means per token, in nats, by the coarser of both sides' dtypes.
# Before anything was trained: what no two implementations of one model come near to.
ABSOLUTE = {"float32": 0.05, "bfloat16": 0.5}
# Later: FACTOR times the first step's mean, and this much more.
FACTOR = 10.0
FLOORS = {"float32": 1e-4, "bfloat16": 1e-2}
# A mean counts as above its bound when it is so by this many of its standard errors: with few tokens a single one that
# is far off says nothing.
STANDARD_ERRORS = 3.0
# With fewer tokens nothing is judged but that they are numbers: a few of them do not even tell their own scatter.
MIN_TOKENS = 100
QUANTILE = 0.999
MAX_LOG_RATIO = 5.0  # log-ratios are clipped for k3, which a single token would make infinite otherwise
# Edges of the counts that quantiles are read from, in nats: 16 per decade, so that a quantile is exact to 8%.
EDGES = np.logspace(-9, 3, 12 * 16 + 1)


@dataclass(frozen=True)
class Total:
    """A sum over tokens, with the sum of squares that its mean's error is computed from."""

    values: float = 0.0
    squares: float = 0.0

    def __add__(self, other: Total) -> Total:
        return Total(self.values + other.values, self.squares + other.squares)

    @classmethod
    def of(cls, values: np.ndarray) -> Total:
        """Sum up an array."""
        return cls(float(values.sum()), float((values**2).sum()))

    def least(self, count: int) -> float:
        """Return what the mean over `count` tokens surely is above."""
        mean = self.values / count
        variance = max(self.squares / count - mean**2, 0.0)
        return mean - STANDARD_ERRORS * math.sqrt(variance / count)


@dataclass(frozen=True, eq=False)
class Differences:
    """Differences of log-probabilities over a set of tokens; those of several sets can be added."""

    num_tokens: int = 0
    num_nonfinite: int = 0
    absolute: Total = field(default_factory=Total)
    divergence: Total = field(default_factory=Total)  # k3: exp(r) - 1 - r for the log-ratio r of learner and engine
    counts: np.ndarray = field(default_factory=lambda: np.zeros(len(EDGES) + 1, dtype=np.int64))  # between EDGES

    @classmethod
    def between(cls, behavior: np.ndarray, learner: np.ndarray) -> Differences:
        """Compare two aligned arrays [L]; tokens without a finite difference are only counted."""
        with np.errstate(invalid="ignore"):  # inf - inf is no number, and counted as such
            ratio = learner.astype(np.float64) - behavior.astype(np.float64)
        is_finite = np.isfinite(ratio)
        ratio = ratio[is_finite]
        clipped = np.clip(ratio, -MAX_LOG_RATIO, MAX_LOG_RATIO)
        return cls(
            num_tokens=int(ratio.size),
            num_nonfinite=int((~is_finite).sum()),
            absolute=Total.of(np.abs(ratio)),
            divergence=Total.of(np.expm1(clipped) - clipped),
            counts=np.bincount(np.searchsorted(EDGES, np.abs(ratio)), minlength=len(EDGES) + 1),
        )

    def __add__(self, other: Differences) -> Differences:
        return Differences(
            self.num_tokens + other.num_tokens,
            self.num_nonfinite + other.num_nonfinite,
            self.absolute + other.absolute,
            self.divergence + other.divergence,
            self.counts + other.counts,
        )

    @property
    def mean(self) -> float:
        """Mean absolute difference per token; 0 without tokens."""
        return self.absolute.values / max(self.num_tokens, 1)

    @property
    def k3(self) -> float:
        """Estimate of the KL divergence of the learner from the engine per token; 0 without tokens."""
        return self.divergence.values / max(self.num_tokens, 1)

    @property
    def quantile(self) -> float:
        """Absolute difference that all but one token in 1000 stay below."""
        if self.num_tokens == 0:
            return 0.0
        place = int(np.searchsorted(self.counts.cumsum(), math.ceil(QUANTILE * self.num_tokens)))
        return 0.0 if place == 0 else float(EDGES[min(place, len(EDGES) - 1)])

    def metrics(self) -> dict[str, float]:
        """Return the metrics of a step; empty without tokens."""
        if not self.num_tokens:
            return {}
        return {
            "sync/logprob_abs_diff/mean": self.mean,
            "sync/logprob_abs_diff/p999": self.quantile,
            "sync/k3": self.k3,
        }

    def exceeds(self, bound: Bound) -> bool:
        """Return whether the differences are surely larger than `bound`, or no numbers."""
        if self.num_nonfinite or self.num_tokens < MIN_TOKENS:
            return self.num_nonfinite > 0
        count = self.num_tokens
        return self.absolute.least(count) > bound.mean or self.divergence.least(count) > bound.k3


@dataclass(frozen=True)
class Bound:
    """Largest accepted means per token, in nats."""

    mean: float
    k3: float


class Agreement:
    """The comparison of a run's engines with its learner, step by step; the first one sets the bounds of the rest."""

    def __init__(self, *dtypes: str) -> None:
        """Compare sides of these dtypes."""
        self._dtype = coarser(*dtypes)
        self._first: Differences | None = None

    @property
    def bound(self) -> Bound:
        """The bound of the next comparison."""
        if self._first is None:
            return Bound(ABSOLUTE[self._dtype], ABSOLUTE[self._dtype])
        floor = FLOORS[self._dtype]
        return Bound(FACTOR * self._first.mean + floor, FACTOR**2 * self._first.k3 + floor)  # k3 grows as squares do

    def check(self, per_engine: Mapping[int, Differences], policy_version: int) -> None:
        """Compare all engines at one policy version.

        Raises:
            WeightMismatchError: an engine differs from the learner by more than `bound`; names the likely cause.
        """
        bound = self.bound
        wrong = {engine for engine, differences in per_engine.items() if differences.exceeds(bound)}
        if wrong:
            self._refuse(per_engine, wrong, policy_version)
        overall = sum(per_engine.values(), Differences())
        if self._first is None and overall.num_tokens >= MIN_TOKENS:
            self._first = replace(overall)

    def _refuse(self, per_engine: Mapping[int, Differences], wrong: set[int], policy_version: int) -> None:
        bound = self.bound
        table = ", ".join(
            f"rollout/{engine}: mean {found.mean:.2e}, 99.9% below {found.quantile:.2e}, k3 {found.k3:.2e}"
            for engine, found in sorted(per_engine.items())
        )
        source = (
            "accepted from any two implementations of one model"
            if self._first is None
            else f"{FACTOR:g} times the mean and {FACTOR**2:g} times the k3 of the first step compared, plus "
            f"{FLOORS[self._dtype]:g}"
        )
        raise WeightMismatchError(
            f"engines and learner disagree about the trained tokens at policy version {policy_version}, in nats per "
            f"token: {table}. The bounds are mean {bound.mean:.2e} and k3 {bound.k3:.2e}: {source}. "
            f"Likely cause: {self._cause(per_engine, wrong)}. The update was not applied. weights.verify=false turns "
            "the check off"
        )

    def _cause(self, per_engine: Mapping[int, Differences], wrong: set[int]) -> str:
        if any(per_engine[engine].num_nonfinite for engine in wrong):
            return "a log-probability is not finite: weights or logits hold NaN or inf"
        if len(wrong) < len(per_engine):  # where other engines agree, the learner is right
            names = ", ".join(f"rollout/{engine}" for engine in sorted(wrong))
            return f"{names} does not compute with the weights it was sent; the other engines agree with the learner"
        if self._first is None:
            return (
                "nothing was trained since the run began or was resumed, so engine and learner compute different "
                "models: check model.path, rollout.dtype, learner.dtype and the engine's implementation of the model"
            )
        return (
            "engines compute with other weights than they were sent, or the two sides' rounding has grown apart: then "
            "sync/logprob_abs_diff/mean in metrics.jsonl has risen step by step, and a finer dtype or a lower "
            "learner.lr helps"
        )


def coarser(*dtypes: str) -> str:
    """Return the dtype that decides: a float32 learner cannot be nearer to a bfloat16 engine than bfloat16 rounds."""
    return max(dtypes, key=lambda dtype: FLOORS[dtype])


def comparable(trajectory: Trajectory, policy_version: int, *, kv_is_kept: bool) -> np.ndarray:
    """Return the tokens whose log-probabilities `policy_version` alone determines, [L] bool.

    In a response that ran across a weight update they are the tail. When the engine kept its cache of keys and values
    there are none: the tail was sampled with attention to what older weights had computed, and no single version
    reproduces its log-probabilities.
    """
    chosen = np.zeros(trajectory.num_tokens, dtype=bool)
    if kv_is_kept and len(trajectory.versions) > 1:
        return chosen
    for span in trajectory.versions:
        # Spans do not overlap; each covers the tokens that one version sampled.
        chosen[span.start : span.end] = span.policy_version == policy_version
    return chosen & trajectory.loss_mask


def merge(per_rank: Sequence[Mapping[int, Differences]]) -> dict[int, Differences]:
    """Add up the differences per engine of all ranks."""
    merged: dict[int, Differences] = {}
    for part in per_rank:
        for engine, found in part.items():
            merged[engine] = merged.get(engine, Differences()) + found
    return merged
