"""Evaluation of a policy on held-out prompts with greedy and sampled responses, in training and in `rlsys eval`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from rlsys.config.schema import Config
from rlsys.evaluation import intervals
from rlsys.evaluation.intervals import Estimate
from rlsys.guards.missing_rewards import NoRewardError
from rlsys.metrics.step import Metrics
from rlsys.orchestrator.sampling import GroupSampler
from rlsys.preflight.prepared import EvalSet
from rlsys.rewards.judges import judged, judges_of
from rlsys.scoring.combine import first_failure
from rlsys.types import ROUNDING, Reward, Sampling


@dataclass(frozen=True)
class Evaluation:
    """The result on one dataset.

    A response is correct when the value that judges it reaches `eval.correct_at`: see `rlsys.rewards.judges`. Prompts
    and responses that cannot be judged are left out and counted.
    """

    label: str
    accuracy: Estimate  # fraction of prompts whose greedy response is correct
    reward_mean: float  # over the greedy responses
    num_prompts: int
    num_failed: int  # prompts whose greedy response has no valid reward, or none of a judge
    num_samples: int = 0  # sampled responses per prompt
    num_failed_samples: int = 0
    mean_at: Estimate | None = None  # fraction of sampled responses that are correct
    pass_at: dict[int, Estimate] = field(default_factory=dict)  # pass@k by k


Rewards = Sequence[Reward]  # rewards of one prompt's responses


@dataclass(frozen=True)
class Responses:
    """The scored responses to one dataset's prompts."""

    eval_set: EvalSet
    greedy: list[Rewards]
    drawn: list[Rewards]


@dataclass(frozen=True)
class Evaluations:
    """The results on several datasets."""

    found: list[Evaluation]
    lacking: list[str] = field(default_factory=list)  # one message per dataset without any valid reward
    responses: list[Responses] = field(default_factory=list)

    def all(self) -> list[Evaluation]:
        """Return every dataset's result, or raise NoRewardError when one has no valid reward."""
        if self.lacking:
            raise NoRewardError("; ".join(self.lacking))
        return self.found


async def evaluate(
    sampler: GroupSampler, eval_sets: Sequence[EvalSet], config: Config, policy_version: int
) -> Evaluations:
    """Sample and score one greedy response per prompt and `eval.num_samples` random ones."""
    greedy = await _rewards(sampler, eval_sets, config, policy_version, temperature=0.0, count=1)
    drawn: list[list[Rewards]] = [[] for _ in eval_sets]
    if config.eval.num_samples:
        drawn = await _rewards(
            sampler,
            eval_sets,
            config,
            policy_version,
            temperature=config.eval.temperature,
            count=config.eval.num_samples,
        )
    results, judges = Evaluations([]), judges_of(config)
    for eval_set, of_greedy, of_drawn in zip(eval_sets, greedy, drawn, strict=True):
        results.responses.append(Responses(eval_set, of_greedy, of_drawn))
        if any(judged(group[0], judges) is not None for group in of_greedy):
            results.found.append(_evaluation(eval_set, of_greedy, of_drawn, config, judges))
        else:
            failure = first_failure(of_greedy)
            results.lacking.append(
                f"no response of the evaluation on {eval_set.label} has a valid reward. First failure: {failure}"
            )
    return results


def eval_metrics(results: Evaluations) -> Metrics:
    """Return the `eval/*` metrics: one dataset's, or each dataset's under its label and the means over datasets.

    There are no means when a dataset has no result, and no means of interval bounds: the mean of several upper bounds
    is not an upper bound of anything.
    """
    rows = {result.label: _numbers(result) for result in results.found}
    if len(rows) == 1 and not results.lacking:
        (row,) = rows.values()
        return {f"eval/{name}": value for name, value in row.items()}
    own: Metrics = {f"eval/{label}/{name}": value for label, row in rows.items() for name, value in row.items()}
    return own if results.lacking or not rows else _means(list(rows.values())) | own


def _means(rows: Sequence[Mapping[str, float]]) -> Metrics:
    metrics: Metrics = {}
    for name in rows[0]:
        if not name.endswith(("/low", "/high")):
            values = [row[name] for row in rows if name in row]
            metrics[f"eval/{name}"] = float(np.sum(values) if name == "failed" else np.mean(values))
    return metrics


async def _rewards(
    sampler: GroupSampler,
    eval_sets: Sequence[EvalSet],
    config: Config,
    policy_version: int,
    *,
    temperature: float,
    count: int,
) -> list[list[Rewards]]:
    """Return the rewards of every prompt of every set; the sets are sampled together."""
    limit = config.eval.max_response_tokens or config.rollout.max_response_tokens
    sampling = Sampling(temperature=temperature, max_response_tokens=limit, samples_per_prompt=count)
    prompts = [prompt for eval_set in eval_sets for prompt in eval_set.prompts]
    groups = await sampler.sample_prompts(prompts, sampling, policy_version=policy_version)
    rewards: list[Rewards] = [group.rewards for group in groups]
    ends = np.cumsum([len(eval_set.prompts) for eval_set in eval_sets])
    return [rewards[end - len(part.prompts) : end] for end, part in zip(ends, eval_sets, strict=True)]


def _evaluation(
    eval_set: EvalSet, greedy: Sequence[Rewards], drawn: Sequence[Rewards], config: Config, judges: Sequence[str]
) -> Evaluation:
    level, bar = config.eval.confidence, config.eval.correct_at - ROUNDING

    def hits_of(rewards: Rewards) -> list[bool]:
        values = (judged(reward, judges) for reward in rewards)
        return [value >= bar for value in values if value is not None]

    totals = [group[0].total for group in greedy if group[0].total is not None]
    hits, samples = hits_of([group[0] for group in greedy]), [hits_of(group) for group in drawn]
    answered = [found for found in samples if found]
    pass_at = {}
    for k in intervals.reported_ks(config.eval.num_samples) if answered else ():
        values = [intervals.pass_at_k(len(found), sum(found), k) for found in answered if len(found) >= k]
        if values:
            pass_at[k] = intervals.bootstrap_mean(values, level)
    return Evaluation(
        label=eval_set.label,
        accuracy=intervals.wilson_interval(hits, level),
        reward_mean=float(np.mean(totals)),
        num_prompts=len(greedy),
        num_failed=len(greedy) - len(hits),
        num_samples=config.eval.num_samples,
        num_failed_samples=sum(map(len, drawn)) - sum(map(len, samples)),
        mean_at=intervals.bootstrap_mean([float(np.mean(found)) for found in answered], level) if answered else None,
        pass_at=pass_at,
    )


def _numbers(result: Evaluation) -> dict[str, float]:
    numbers = {
        "accuracy": result.accuracy.value,
        "accuracy/low": result.accuracy.low,
        "accuracy/high": result.accuracy.high,
        "reward/mean": result.reward_mean,
        "failed": float(result.num_failed + result.num_failed_samples),
    }
    if result.mean_at is not None:
        numbers[f"mean_at_{result.num_samples}"] = result.mean_at.value
    numbers |= {f"pass_at_{k}": estimate.value for k, estimate in result.pass_at.items()}
    return numbers
