"""An evaluation's numbers, from rewards that a test gives."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from rlsys.config.schema import Config, EvalConfig
from rlsys.evaluation.evaluate import Evaluations, eval_metrics, evaluate
from rlsys.guards.missing_rewards import NoRewardError
from rlsys.preflight.prepared import EvalSet
from rlsys.scoring.combine import combine
from rlsys.types import Prompt, Reward, RewardPart, Sampling, ScoredGroup
from tests.unit.records import group, reward, scored, summary


class Answers:
    """In the sampler's place: totals by prompt, first the greedy one, then those of drawn responses."""

    def __init__(self, totals: Sequence[Sequence[float | None]]) -> None:
        self._totals = totals
        self.asked: list[Sampling] = []

    async def sample_prompts(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, policy_version: int
    ) -> list[ScoredGroup]:
        self.asked.append(sampling)
        rows = [self._totals[prompt.index] for prompt in prompts]
        chosen = [row[:1] if sampling.temperature == 0 else row[1:] for row in rows]
        rewards = [
            [reward(total) if total is not None else reward(None, "error", detail="no") for total in row]
            for row in chosen
        ]
        return [scored(group(0, [summary(1) for _ in row]), row) for row in rewards]


class Rewards:
    """In the sampler's place: the same reward for every response to a prompt."""

    def __init__(self, rewards: Sequence[Reward]) -> None:
        self._rewards = rewards

    async def sample_prompts(
        self, prompts: Sequence[Prompt], sampling: Sampling, *, policy_version: int
    ) -> list[ScoredGroup]:
        count = sampling.samples_per_prompt
        return [scored(group(0, [summary(1)] * count), [self._rewards[prompt.index]] * count) for prompt in prompts]


def evaluated(answers: Any, *arguments: Any) -> Evaluations:
    return asyncio.run(evaluate(answers, *arguments))


def sets(*sizes: int) -> list[EvalSet]:
    found, first = [], 0
    for number, size in enumerate(sizes):
        prompts = [Prompt(index, "?", np.array([1], dtype=np.int32)) for index in range(first, first + size)]
        found.append(EvalSet(f"set{number}", prompts))
        first += size
    return found


def config(**options: Any) -> Config:
    made = Config(eval=EvalConfig(**options))
    made.rollout.max_response_tokens = 7
    return made


def test_greedy_and_drawn_by_hand() -> None:
    """Of four drawn responses: prompt 0 has 2 correct, prompt 1 none, prompt 2 all of the 2 that are valid."""
    totals = [[1.0, 1.0, 0.0, 1.0, 0.5], [0.0, 0.0, 0.2, 0.0, 0.9], [None, 1.0, None, 2.0, None]]
    answers: Any = Answers(totals)
    results = evaluated(answers, sets(3), config(num_samples=4, temperature=0.7), 3)
    (found,) = results.all()
    asked = [(one.temperature, one.samples_per_prompt, one.max_response_tokens) for one in answers.asked]
    assert asked == [(0, 1, 7), (0.7, 4, 7)]
    assert (found.accuracy.value, found.reward_mean) == (0.5, 0.5)
    assert (found.num_prompts, found.num_failed, found.num_failed_samples) == (3, 1, 2)
    assert found.mean_at is not None
    assert found.mean_at.value == pytest.approx((0.5 + 0 + 1) / 3)
    # pass@2 of n = 4, c = 2: 1 - C(2, 2) / C(4, 2) = 5 / 6; pass@4 only of prompts with four valid responses.
    assert {k: pytest.approx(e.value) for k, e in found.pass_at.items()} == {
        1: (0.5 + 0 + 1) / 3,
        2: (5 / 6 + 0 + 1) / 3,
        4: (1 + 0) / 2,
    }
    metrics = eval_metrics(results)
    assert metrics["eval/accuracy"] == 0.5
    assert metrics["eval/failed"] == 3.0
    assert metrics["eval/mean_at_4"] == pytest.approx(0.5)
    assert metrics["eval/pass_at_2"] == pytest.approx((5 / 6 + 1) / 3)


def test_several_data_sets_are_sampled_together_and_told_apart() -> None:
    answers: Any = Answers([[1.0], [1.0], [0.0], [0.0], [1.0]])
    results = evaluated(answers, sets(2, 3), config(), 0)
    assert len(answers.asked) == 1
    assert [(part.label, part.accuracy.value) for part in results.found] == [
        ("set0", 1.0),
        ("set1", pytest.approx(1 / 3)),
    ]
    responses = [(part.eval_set.label, len(part.greedy), len(part.drawn)) for part in results.responses]
    assert responses == [("set0", 2, 0), ("set1", 3, 0)]
    metrics = eval_metrics(results)
    assert metrics["eval/accuracy"] == pytest.approx((1 + 1 / 3) / 2)  # data sets weigh alike
    assert metrics["eval/set1/accuracy"] == pytest.approx(1 / 3)
    assert metrics["eval/set0/accuracy/low"] < 1.0 == metrics["eval/set0/accuracy/high"]
    assert not {"eval/accuracy/low", "eval/accuracy/high"} & metrics.keys()  # a mean of ends is the end of none
    assert {"eval/accuracy/low", "eval/accuracy/high"} <= eval_metrics(Evaluations(results.found[:1])).keys()


def test_prompts_that_are_all_wrong_leave_pass_at_k_an_interval() -> None:
    answers: Any = Answers([[0.0] * 5] * 12)
    (found,) = evaluated(answers, sets(12), config(num_samples=4), 0).all()
    assert found.mean_at is not None
    for estimate in (found.mean_at, found.pass_at[4]):
        assert (estimate.value, estimate.low) == (0.0, 0.0)
        assert estimate.high > 0.2


def test_a_bar_below_one() -> None:
    (found,) = evaluated(Answers([[-4.0], [-6.0]]), sets(2), config(correct_at=-5.0), 0).all()  # type: ignore[arg-type]
    assert found.accuracy.value == 0.5


def test_accuracy_is_that_of_the_reward_that_judges_answers() -> None:
    """Of three answers in the right format one is right: the format must not lift the wrong ones over the bar."""
    rewards = [
        combine(
            {"accuracy": RewardPart(right, "ok"), "format": RewardPart(1.0, "ok")}, {"accuracy": 0.5, "format": 1.0}
        )
        for right in (1.0, 0.0, 0.0)
    ]
    rewards.append(
        combine({"accuracy": RewardPart(None, "not_applicable"), "format": RewardPart(1.0, "ok")}, {"format": 1.0})
    )
    made = replace(config(num_samples=2), rewards=[{"name": "accuracy", "weight": 0.5}, {"name": "format"}])
    (found,) = evaluated(Rewards(rewards), sets(4), made, 0).all()
    assert (found.accuracy.value, found.num_failed) == (pytest.approx(1 / 3), 1)
    assert found.reward_mean == pytest.approx((1.5 + 3 * 1.0) / 4)
    assert found.pass_at[1].value == pytest.approx(1 / 3)
    made.eval.accuracy_from = "format"
    (found,) = evaluated(Rewards(rewards), sets(4), made, 0).all()
    assert (found.accuracy.value, found.num_failed) == (1.0, 0)


def test_a_value_that_lacks_only_rounding_is_correct() -> None:
    (found,) = evaluated(Answers([[0.6 + 0.3 + 0.1]]), sets(1), config(), 0).all()  # type: ignore[arg-type]
    assert found.accuracy.value == 1.0


def test_a_data_set_without_a_valid_reward_is_named() -> None:
    results = evaluated(Answers([[1.0], [None]]), sets(1, 1), config(), 0)  # type: ignore[arg-type]
    with pytest.raises(NoRewardError, match=r"evaluation on set1 has a valid reward.*exact_match: error: no"):
        results.all()
    metrics = eval_metrics(results)  # what the other one has is kept, and is not taken for the mean of both
    assert metrics["eval/set0/accuracy"] == 1.0
    assert "eval/accuracy" not in metrics
    assert eval_metrics(Evaluations([], ["all"])) == {}
