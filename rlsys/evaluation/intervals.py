"""Confidence intervals of evaluations: of fractions, of means over prompts, and of pass@k."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value with the ends of its confidence interval."""

    value: float
    low: float
    high: float


def wilson_interval(hits: Sequence[bool], confidence: float) -> Estimate:
    """Return the fraction of hits among independent trials, with Wilson's score interval (doi:10.2307/2276774)."""
    count, z = len(hits), NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = sum(hits) / count
    center = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    # By rounding the interval may miss its value, or 0 and 1, in the last digit.
    return Estimate(rate, min(max(center - half, 0.0), rate), max(min(center + half, 1.0), rate))


def bootstrap_mean(values: Sequence[float], confidence: float) -> Estimate:
    """Return the mean of one value per prompt, with a percentile bootstrap interval over prompts.

    Prompts are resampled and not responses, because a prompt's responses are alike. The draws are always the same. If
    all values are 0 or all are 1, all resamples are equal and show nothing: then the interval is Wilson's, with prompts
    as trials.
    """
    array = np.asarray(values, dtype=np.float64)
    if np.all(array == 0) or np.all(array == 1):
        return wilson_interval([bool(value) for value in array], confidence)
    rng = np.random.default_rng(0)
    # How often each prompt is in a resample is enough for its mean: one product instead of an index per draw.
    counts = rng.multinomial(len(array), np.full(len(array), 1 / len(array)), size=RESAMPLES)
    tail = (1 - confidence) / 2
    low, high = np.quantile(counts @ array / len(array), [tail, 1 - tail])
    return Estimate(float(array.mean()), float(low), float(high))


def pass_at_k(num_samples: int, num_correct: int, k: int) -> float:
    """Return the unbiased estimate of the probability that at least one of k samples is correct.

    Of n samples c are correct: `1 - C(n - c, k) / C(n, k)` (arXiv:2107.03374, equation 1).

    Raises:
        ValueError: k is not between 1 and the number of samples.
    """
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples: k must be between 1 and the number of samples")
    if num_samples - num_correct < k:
        return 1.0
    # The quotient of the binomials as a product of small factors: the binomials themselves overflow.
    rest = np.arange(num_samples - num_correct + 1, num_samples + 1)
    return float(1.0 - np.prod(1.0 - k / rest))


def reported_ks(num_samples: int) -> list[int]:
    """Return the k for which pass@k is reported: the powers of 2 up to the number of samples, and the number itself."""
    ks = [2**exponent for exponent in range(num_samples.bit_length()) if 2**exponent <= num_samples]
    return ks if not ks or ks[-1] == num_samples else [*ks, num_samples]
