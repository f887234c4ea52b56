"""How sure an evaluation is: shares, means and pass@k with confidence intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist

import numpy as np

RESAMPLES = 2000


@dataclass(frozen=True)
class Estimate:
    """A value and the ends of its interval."""

    value: float
    low: float
    high: float


def share(hits: Sequence[bool], confidence: float) -> Estimate:
    """The share of hits among independent trials, with Wilson's score interval (doi:10.2307/2276774)."""
    count, z = len(hits), NormalDist().inv_cdf(0.5 + confidence / 2)
    rate = sum(hits) / count
    middle = (rate + z**2 / (2 * count)) / (1 + z**2 / count)
    half = z / (1 + z**2 / count) * math.sqrt(rate * (1 - rate) / count + z**2 / (4 * count**2))
    return Estimate(rate, min(max(middle - half, 0.0), rate), max(min(middle + half, 1.0), rate))


def mean(values: Sequence[float], confidence: float) -> Estimate:
    """The mean of one value a prompt, with a percentile bootstrap over prompts: a prompt's responses are alike, so they
    are drawn together. Always the same draws. Where every value is 0, or every one is 1, all resamples are alike and
    say nothing: the interval is then Wilson's, of prompts as trials."""
    array = np.asarray(values, dtype=np.float64)
    if np.all(array == 0) or np.all(array == 1):
        return share([bool(value) for value in array], confidence)
    rng = np.random.default_rng(0)
    # A resample is how often each prompt comes: one product with the values instead of an index a draw.
    counts = rng.multinomial(len(array), np.full(len(array), 1 / len(array)), size=RESAMPLES)
    tail = (1 - confidence) / 2
    low, high = np.quantile(counts @ array / len(array), [tail, 1 - tail])
    return Estimate(float(array.mean()), float(low), float(high))


def pass_at(num_samples: int, num_correct: int, k: int) -> float:
    """Probability that one of k samples is correct, estimated without bias from n of which c are:
    `1 - C(n - c, k) / C(n, k)` (arXiv:2107.03374, equation 1)."""
    if not 1 <= k <= num_samples:
        raise ValueError(f"pass@{k} of {num_samples} samples")
    if num_samples - num_correct < k:
        return 1.0
    rest = np.arange(num_samples - num_correct + 1, num_samples + 1)
    return float(1.0 - np.prod(1.0 - k / rest))


def powers(num_samples: int) -> list[int]:
    """The k of which pass@k is reported: 1, 2, 4 ... and the number of samples itself."""
    ks = [2**exponent for exponent in range(num_samples.bit_length()) if 2**exponent <= num_samples]
    return ks if not ks or ks[-1] == num_samples else [*ks, num_samples]
