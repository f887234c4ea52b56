"""From scored groups to what the learner trains on."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest

from rlsys.config.compose import load_config
from rlsys.metrics.step import StageClock
from rlsys.orchestrator.batch import StepBatch
from rlsys.orchestrator.experience import ExperienceBuilder
from rlsys.scoring.combine import combine
from rlsys.types import Coefficients, EpisodeEnd, Experience, ReferenceScores, Reward, RewardPart, ScoredGroup
from tests.unit.records import group, reward, scored, summary

GROUPS = [group(0, [summary(4), summary(6)]), group(1, [summary(2), summary(8, finish="length"), summary(5)])]
REWARDS = [[reward(1.0), reward(0.0)], [reward(2.0), reward(4.0), reward(6.0)]]


COEFFICIENTS = Coefficients(kl=0.5, entropy=0.0)


class MadeUpCritic:
    """Gives every group a reference to estimates."""

    async def estimate(self, groups: Sequence[ScoredGroup], coefficients: Coefficients) -> tuple[Any, dict[str, float]]:
        assert coefficients == COEFFICIENTS
        return tuple(f"e {group.group_id}" for group in groups), {"critic/value/mean": 1.0}


def make(
    rewards: list[list[Reward]],
    *overrides: str,
    groups: Any = None,
    kl_sums: Any = None,
    baselines: Any = None,
    critic: Any = None,
    trained: Sequence[int] | None = None,
) -> Experience:
    """Build the experience of a run that centres rewards in their group."""
    named = ["algorithm.advantage={name: dr_grpo}", "algorithm.aggregation={name: token_mean}", "algorithm.kl.coef=0"]
    config = load_config([*named, *overrides])
    made = []
    for number, (rollout, of_group) in enumerate(zip(GROUPS if groups is None else groups, rewards, strict=True)):
        facts: dict[str, Any] = {}
        if kl_sums is not None:
            facts["reference"] = ReferenceScores(f"ref {number}", kl_sums[number])
        if baselines is not None:
            facts["baseline"] = reward(baselines[number])
        made.append(scored(rollout, of_group, **facts))
    batch = StepBatch(7, tuple(made), tuple(range(len(made)) if trained is None else trained))
    builder = ExperienceBuilder(config, StageClock(), lambda: COEFFICIENTS, critic)
    return asyncio.run(builder.build(batch))


def chunk_names(experience: Experience) -> list[str]:
    return [refs[0].chunk for refs in experience.trajectories]


def test_rows_by_hand() -> None:
    experience = make(REWARDS, kl_sums=[[], []])
    rows = [(r.index, r.group, r.sample, r.advantage, r.num_tokens, r.num_response_tokens) for r in experience.rows]
    assert rows == [
        (0, 0, 0, 0.5, 7, 4),
        (1, 0, 1, -0.5, 9, 6),
        (2, 1, 0, -2.0, 5, 2),
        (3, 1, 1, 0.0, 11, 8),
        (4, 1, 2, 2.0, 8, 5),
    ]
    assert {row.weight for row in experience.rows} == {1 / 25}  # 4 + 6 + 2 + 8 + 5 tokens
    assert chunk_names(experience) == ["arrays of group 0", "arrays of group 1"]
    assert experience.ref_logprobs == ("ref 0", "ref 1")
    assert experience.policy_version == 7
    assert experience.coefficients.kl == 0.5


def test_pass_at_k_counts_the_reward_that_judges_answers() -> None:
    """The two answers in the right format are wrong, though their totals are the highest."""
    parts = [(1.0, 0.0), (0.0, 1.0), (0.0, 1.0)]
    weights = {"exact_match": 1.0, "format": 2.0}
    rewards = [
        combine({"exact_match": RewardPart(right, "ok"), "format": RewardPart(form, "ok")}, weights)
        for right, form in parts
    ]
    made = make(
        [rewards],
        "algorithm.advantage={name: grpo_passk, k: 2}",
        "rewards=[{name: exact_match}, {name: format, weight: 2}]",
        groups=[GROUPS[1]],
    )
    first, *others = [row.advantage for row in made.rows]
    assert first > 0 > others[0] == others[1]


def test_minibatches_keep_groups_whole_and_have_denominators_of_their_own() -> None:
    experience = make(REWARDS, "train.minibatches_per_step=2")
    assert [[row.group for row in rows] for rows in experience.minibatches] == [[0, 0], [1, 1, 1]]
    assert [rows[0].weight for rows in experience.minibatches] == [1 / 10, 1 / 15]
    assert [row.advantage for row in experience.rows] == [0.5, -0.5, -2.0, 0.0, 2.0]


def test_every_aggregation_takes_fewer_groups_than_minibatches() -> None:
    for name in ("token_mean", "sequence_mean", "prompt_mean"):
        made = make(REWARDS, "train.minibatches_per_step=5", f"algorithm.aggregation={{name: {name}}}")
        assert [len(rows) for rows in made.minibatches] == [2, 3]
        assert made.metrics["groups/empty_minibatches"] == 3


def test_updates_that_are_not_made_are_counted_and_the_first_time_logged(caplog: pytest.LogCaptureFixture) -> None:
    assert make(REWARDS, "train.minibatches_per_step=2").metrics["groups/empty_minibatches"] == 0
    assert make([[reward(None, "error")] * n for n in (2, 3)]).metrics["groups/empty_minibatches"] == 1
    assert caplog.messages == []
    config = load_config(["train.minibatches_per_step=3", "algorithm.kl.coef=0"])
    builder = ExperienceBuilder(config, StageClock(), lambda: COEFFICIENTS, None)
    groups = tuple(scored(rollout, of_group) for rollout, of_group in zip(GROUPS, REWARDS, strict=True))
    for _ in range(2):
        made = asyncio.run(builder.build(StepBatch(7, groups, (0, 1))))
        assert (len(made.minibatches), made.metrics["groups/empty_minibatches"]) == (2, 1)
    (message,) = caplog.messages
    assert message.startswith("step 8 has 2 minibatches, not train.minibatches_per_step=3")


def test_more_minibatches_than_groups_with_a_reward_leaves_no_empty_one() -> None:
    rewards = [[reward(None, "error")] * 2, REWARDS[1]]
    assert [len(rows) for rows in make(rewards, "train.minibatches_per_step=2").minibatches] == [3]


def test_trajectories_without_a_reward_are_left_out_and_shift_no_mean() -> None:
    rewards = [[reward(None, "timeout"), reward(None, "error")], [reward(2.0), reward(None, "error"), reward(6.0)]]
    experience = make(rewards)
    # The mean of group 1 is (2 + 6) / 2: a failed reward is not a reward of 0.
    assert [(row.group, row.sample, row.advantage) for row in experience.rows] == [(1, 0, -2.0), (1, 2, 2.0)]
    assert chunk_names(experience) == ["arrays of group 0", "arrays of group 1"]  # indices of groups stay true
    assert {row.weight for row in experience.rows} == {1 / 7}


def test_a_group_with_one_valid_reward_teaches_nothing() -> None:
    rewards = [[reward(1.0), reward(None, "error")], [reward(1.0), reward(0.0), reward(0.0)]]
    experience = make(rewards, "algorithm.advantage={name: grpo}")
    assert experience.rows[0].advantage == 0.0
    assert experience.rows[1].advantage > 0.0


def test_masked_truncated_responses_count_for_the_baseline_but_are_not_trained() -> None:
    experience = make(REWARDS, "algorithm.groups.mask_truncated=true")
    assert [(row.group, row.sample, row.advantage) for row in experience.rows][2:] == [(1, 0, -2.0), (1, 2, 2.0)]
    assert {row.weight for row in experience.rows} == {1 / 17}


def test_an_episode_s_end_decides_whether_it_counts_and_whether_it_is_trained() -> None:
    ends: list[EpisodeEnd] = ["completed", "max_turns", "env_error"]
    groups = [group(0, [replace(summary(4), end=end) for end in ends])]
    rewards = [[reward(1.0), reward(0.0), reward(9.0)]]
    assert [(row.sample, row.advantage) for row in make(rewards, groups=groups).rows] == [(0, 0.5), (1, -0.5)]
    masked = make(rewards, "episodes.on_end.max_turns=mask", "episodes.on_end.env_error=mask", groups=groups).rows
    assert [(row.sample, round(row.advantage, 3)) for row in masked] == [(0, -2.333)]


def test_a_kl_in_the_reward_is_taken_off_before_the_baseline() -> None:
    # Rewards 1 - 0.5 * 2 and 0 - 0.5 * 1: mean -1/4.
    kl = ["algorithm.kl.coef=0.5", "algorithm.kl.apply_to=reward"]
    sums = [[2.0, 1.0], [0.0, 0.0, 0.0]]
    assert [row.advantage for row in make(REWARDS, *kl, kl_sums=sums).rows][:2] == [0.25, -0.25]
    in_loss = make(REWARDS, "algorithm.kl.coef=0.5", kl_sums=sums)
    assert [row.advantage for row in in_loss.rows][:2] == [0.5, -0.5]


def test_a_greedy_baseline_and_a_prompt_whose_greedy_reward_failed() -> None:
    experience = make(REWARDS, "algorithm.advantage={name: remax}", baselines=[None, 3.0])
    assert [(row.group, row.advantage) for row in experience.rows] == [(1, -1.0), (1, 1.0), (1, 3.0)]
    assert make(REWARDS, "algorithm.advantage={name: remax}", baselines=[None, None]).minibatches == ()


def test_with_value_estimates_rows_have_no_advantage_of_their_own() -> None:
    experience = make(REWARDS, "algorithm.advantage={name: gae}", critic=MadeUpCritic())
    assert {row.advantage for row in experience.rows} == {0.0}
    assert experience.estimates == ("e 0", "e 1")
    assert experience.metrics == {"critic/value/mean": 1.0, "groups/empty_minibatches": 0.0}


def test_only_the_groups_to_train_are_in_it() -> None:
    experience = make(REWARDS, trained=[1])
    assert chunk_names(experience) == ["arrays of group 1"]
    assert {row.group for row in experience.rows} == {0}


def test_a_batch_with_a_number_that_is_not_finite_is_an_empty_experience() -> None:
    experience = make([[reward(1.0), reward(None, "not_finite")], REWARDS[1]], critic=MadeUpCritic())
    assert (experience.minibatches, experience.trajectories, experience.estimates) == ((), (), None)


def test_no_group_at_all_is_an_empty_experience() -> None:
    assert make([], groups=[]).minibatches == ()


def test_no_valid_reward_at_all_is_an_empty_experience() -> None:
    assert make([[reward(None, "timeout"), reward(None, "error")], [reward(None, "error")] * 3]).minibatches == ()
