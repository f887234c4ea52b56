"""Comparison of engine and learner on the same tokens, and the likely cause when they disagree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rlsys.config.schema import WeightsConfig
from rlsys.errors import WeightMismatchError
from rlsys.types import Trajectory

# Largest accepted |engine - learner| log-probability of one token, in nats. In float32 the two sides agree to about
# 1e-5. bfloat16 rounds differently in every kernel.
DEFAULT_BOUNDS = {"float32": 1e-3, "bfloat16": 1.0}


@dataclass(frozen=True)
class LogprobDiff:
    """Absolute differences of log-probabilities over a set of tokens; differences of several sets can be added."""

    total: float = 0.0
    largest: float = 0.0
    num_tokens: int = 0

    def __add__(self, other: LogprobDiff) -> LogprobDiff:
        return LogprobDiff(
            self.total + other.total, max(self.largest, other.largest), self.num_tokens + other.num_tokens
        )

    @property
    def mean(self) -> float:
        """Mean difference per token; 0 without tokens."""
        return self.total / max(self.num_tokens, 1)


def diff_of(behavior: np.ndarray, learner: np.ndarray) -> LogprobDiff:
    """Compare two aligned arrays [L]; a difference that is not finite counts as infinite."""
    if behavior.size == 0:
        return LogprobDiff()
    with np.errstate(invalid="ignore"):  # inf - inf is replaced by infinity below
        difference = np.abs(behavior.astype(np.float64) - learner.astype(np.float64))
    difference = np.where(np.isfinite(difference), difference, np.inf)
    return LogprobDiff(float(difference.sum()), float(difference.max()), int(difference.size))


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


def merge(per_rank: Sequence[Mapping[int, LogprobDiff]]) -> dict[int, LogprobDiff]:
    """Add up the differences per engine of all ranks."""
    merged: dict[int, LogprobDiff] = {}
    for part in per_rank:
        for engine, diff in part.items():
            merged[engine] = merged.get(engine, LogprobDiff()) + diff
    return merged


def bound_of(config: WeightsConfig, *dtypes: str) -> float | None:
    """Return the largest accepted difference between sides of these dtypes; None when the check is off."""
    if not config.verify:
        return None
    if config.max_logprob_diff is not None:
        return config.max_logprob_diff
    # The coarser side decides: a float32 learner cannot be nearer to a bfloat16 engine than bfloat16 rounds.
    return max(DEFAULT_BOUNDS[dtype] for dtype in dtypes)


def check_logprobs(
    per_engine: Mapping[int, LogprobDiff],
    *,
    bound: float,
    policy_version: int,
    num_engines: int,
    tokens: str = "the trained tokens",
    consequence: str = "The update was not applied",
) -> None:
    """Raise WeightMismatchError with the likely cause when any engine differs from the learner by more than `bound`.

    Args:
        per_engine: the differences of each engine.
        bound: largest accepted difference of one token.
        policy_version: version that both sides should hold.
        num_engines: number of engines compared so far; if only some of them differ, a broadcast was incomplete.
        tokens: names the compared tokens in the message.
        consequence: ends the message's description.
    """
    wrong = {engine: diff for engine, diff in per_engine.items() if diff.largest > bound}
    if not wrong:
        return
    worst = max(wrong.values(), key=lambda diff: diff.largest)
    table = ", ".join(
        f"rollout/{engine}: max {diff.largest:.2e} mean {diff.mean:.2e}" for engine, diff in sorted(per_engine.items())
    )
    raise WeightMismatchError(
        f"engines and learner disagree about {tokens} at policy version {policy_version}: largest "
        f"log-probability difference {worst.largest:.2e}, bound {bound:g} ({table}). "
        f"Likely cause: {_cause(worst, wrong, num_engines, policy_version, bound)}. {consequence}. "
        "weights.max_logprob_diff sets the bound, weights.verify=false turns the check off"
    )


def _cause(worst: LogprobDiff, wrong: Mapping[int, LogprobDiff], num_engines: int, version: int, bound: float) -> str:
    if not np.isfinite(worst.largest):
        return "a log-probability is not finite: weights or logits hold NaN or inf"
    if len(wrong) < num_engines:  # where other engines agree, the learner is right
        names = ", ".join(f"rollout/{engine}" for engine in sorted(wrong))
        return f"the last broadcast did not reach {names} completely; the other engines agree with the learner"
    # Nothing has been broadcast yet: either rounding (small) or different models (large).
    if version == 0 and worst.largest < 30 * bound:
        return (
            "numerical difference (nothing was trained yet, and it is small): engine and learner run different dtypes "
            "or kernels; compare rollout.dtype with learner.dtype, or raise the bound"
        )
    if version == 0:
        return (
            "nothing was trained yet, so engine and learner loaded or compute different models: check model.path, the "
            "temperature (rollout.temperature must reach both sides) and the engine's model implementation"
        )
    return (
        "the last broadcast left parameters behind on every engine: a layer that received nothing keeps its old "
        "weights, and so does a tied output layer (lm_head) whose packed copy was not renewed. If the difference was "
        "close to the bound from the first step on, it is numerical instead (see sync/logprob_abs_diff/max in "
        "metrics.jsonl)"
    )
