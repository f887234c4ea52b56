"""Greedy answers to held-out prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from rlsys.config import Config
from rlsys.errors import RlsysError
from rlsys.pipeline.sampler import Sampler
from rlsys.scoring.combine import first_failure
from rlsys.types import Prompt, Sampling


@dataclass(frozen=True)
class Evaluation:
    """`accuracy` is the share of prompts whose total reward reached `eval.correct_at`, over those with a valid one."""

    accuracy: float
    reward_mean: float
    num_prompts: int
    num_failed: int  # prompts without a valid reward


def evaluate(sampler: Sampler, prompts: Sequence[Prompt], config: Config, policy_version: int) -> Evaluation:
    """One greedy response a prompt, scored like any other trajectory. Raises RlsysError when no reward is valid."""
    limit = config.eval.max_response_tokens or config.rollout.max_response_tokens
    sampling = Sampling(temperature=0.0, max_response_tokens=limit, samples_per_prompt=1)
    _, rewards = sampler.complete(prompts, sampling, policy_version)
    totals = [group[0].total for group in rewards]
    valid = [total for total in totals if total is not None]
    if not valid:
        raise RlsysError(f"no response of the evaluation has a valid reward. First failure: {first_failure(rewards)}")
    accuracy = float(np.mean([total >= config.eval.correct_at for total in valid]))
    return Evaluation(accuracy, float(np.mean(valid)), len(totals), len(totals) - len(valid))
