"""From prompts to a step's groups, drawn again where groups teach nothing; engines and rewards are made up."""

from __future__ import annotations

import asyncio
import random
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from rlsys.config.algorithm_schema import AlgorithmConfig, GroupsConfig
from rlsys.config.schema import Config
from rlsys.errors import DeadlineError, RlsysError, WorkerError
from rlsys.orchestrator.batch import StepBatch, has_variance
from rlsys.orchestrator.from_config import sampling_params_of
from rlsys.preflight.checks import check_config
from rlsys.types import Reward, RewardPart
from tests.unit.orchestrator.made_up_workers import Source
from tests.unit.records import group, reward, scored, summary, text_of


def ids(batch: StepBatch) -> list[int]:
    return [group.group_id for group in batch.trained_groups]


def test_kept_as_they_are() -> None:
    batch = Source([False, True]).batch()
    assert ids(batch) == [0, 1]
    assert batch.metrics() == {
        "groups/zero_variance": 1.0,
        "groups/discarded": 0.0,
        "groups/tries": 1.0,
        "reward/logged/logged": 1.0,
    }
    texts = [[asyncio.run(text_of(each.response)) for each in rewards] for rewards in batch.rewards]
    assert texts == [["0, 0", "0, 1"], ["1, 0", "1, 1"]]  # each prompt's samples, wherever they were scored
    assert set(batch.stage_s) == {"rollout", "scoring"}


def test_dropped() -> None:
    batch = Source([False, True], zero_variance="drop").batch()
    assert ids(batch) == [1]
    assert len(batch.groups) == 2


def test_resampled_until_enough_and_nothing_accepted_is_lost() -> None:
    batch = Source([True, False, False, True], zero_variance="resample").batch()
    assert ids(batch) == [0, 3]
    metrics = batch.metrics()
    assert (metrics["groups/zero_variance"], metrics["groups/discarded"], metrics["groups/tries"]) == (2.0, 2.0, 2.0)


def test_oversampling_trains_what_it_gets_beyond_the_number_asked_for() -> None:
    batch = Source([True, False, True, True, True], zero_variance="resample", oversample=1.5).batch()
    assert len(batch.groups) == 3
    assert ids(batch) == [0, 2]
    assert ids(Source([True, True, True], zero_variance="resample", oversample=1.5).batch()) == [0, 1, 2]


def test_after_the_last_try_the_step_has_what_there_is() -> None:
    batch = Source([False, True, *[False] * 9], zero_variance="resample", max_tries=3).batch()
    assert ids(batch) == [1]
    assert batch.metrics()["groups/tries"] == 3  # 6 prompts for 2
    assert ids(Source([False] * 9, zero_variance="resample", max_tries=2).batch()) == []


@pytest.mark.parametrize("rule", ["keep", "resample"])
def test_a_greedy_response_of_every_prompt_drawn(rule: str) -> None:
    batch = Source([True, False, True], greedy=True, zero_variance=rule).batch()
    baselines = [group.baseline.total for group in batch.groups if group.baseline is not None]
    assert baselines == [1.0] * len(batch.groups)


@pytest.mark.parametrize("rule", ["keep", "drop", "resample"])
def test_a_step_without_one_valid_reward_names_the_failure(rule: str) -> None:
    """A reward function that is broken must not look like a policy that is perfect, whose groups have no variance."""
    source = Source([True] * 99, zero_variance=rule, max_tries=2)
    source.reward_of = lambda number, sample: reward(None, "error", detail="no such key")
    lacking = source.batch().missing_rewards()
    assert lacking is not None
    assert "no such key" in lacking


def failing(number: int, sample: int) -> Reward:
    """The second response to prompt 1 has a reward that failed."""
    return reward(None, "timeout", detail="too slow") if (number, sample) == (1, 1) else reward(float(sample))


def test_a_failed_reward_leaves_its_trajectory_out() -> None:
    source = Source([True] * 9)
    source.reward_of = failing
    batch = source.batch()
    assert ids(batch) == [0, 1]
    assert [[r.total for r in rewards] for rewards in batch.rewards] == [[0.0, 1.0], [0.0, None]]


def test_a_failed_reward_may_drop_its_group() -> None:
    source = Source([True] * 9, on_error="drop_group")
    source.reward_of = failing
    first, second = source.batches(2)
    assert ids(first) == [0]
    assert first.metrics()["groups/discarded"] == 1.0
    assert ids(second) == [2, 3]


def test_a_dropped_group_is_replaced_where_groups_are_resampled() -> None:
    source = Source([True] * 9, on_error="drop_group", zero_variance="resample")
    source.reward_of = failing
    assert ids(source.batch()) == [0, 2]


def test_a_failed_reward_may_end_the_run() -> None:
    source = Source([True] * 9, on_error="raise")
    source.reward_of = failing
    with pytest.raises(RlsysError, match=r"prompt 1: .*too slow.*scoring.on_error=raise"):
        source.batch()


def test_outside_estimators_may_resample() -> None:
    check_config(Config(algorithm=AlgorithmConfig(advantage={"name": "math:sqrt"}, groups=GroupsConfig("resample"))))


@pytest.mark.parametrize("rule", ["keep", "drop", "resample"])
def test_rewards_that_are_never_finite_are_found_whatever_becomes_of_their_groups(rule: str) -> None:
    source = Source([True] * 99, zero_variance=rule, max_tries=2)
    source.reward_of = lambda number, sample: reward(None, "not_finite")
    batch = source.batch()
    assert len(batch.nonfinite()) == 2 * len(batch.groups) > 0
    assert not batch.is_usable


def test_gdpo_looks_at_the_parts() -> None:
    """Equal totals of different parts teach it something."""
    apart = [Reward(1.0, {"a": RewardPart(a, "ok"), "b": RewardPart(1.0 - a, "ok")}, "ok") for a in (0.0, 1.0)]
    assert not has_variance(apart, by_parts=False)
    assert has_variance(apart, by_parts=True)
    assert not has_variance([apart[0], apart[0]], by_parts=True)


def test_what_is_not_finite_is_named() -> None:
    first = scored(group(0, [summary(3), summary(3)]), [reward(1.0), reward(None, "not_finite")])
    second = scored(group(1, [summary(3), summary(3, finite=False)]), [reward(1.0), reward(0.0)])
    batch = StepBatch(0, (first, second), trained=(0, 1))
    assert [(o.group, o.sample, o.what) for o in batch.nonfinite()] == [
        (0, 1, "reward"),
        (1, 1, "engine log-probability"),
    ]
    assert [o.group for o in replace(batch, trained=(0,)).nonfinite()] == [0]


@pytest.mark.parametrize("seed", range(5))
def test_synchronous_batches_do_not_depend_on_who_was_faster(seed: int) -> None:
    source = Source([True] * 20, seed=seed, engines=3)
    assert [ids(batch) for batch in source.batches(4)] == [[0, 1], [2, 3], [4, 5], [6, 7]]
    assert source.orchestrator.pending_positions() == source.orchestrator.finished(4) == []
    # Taken by step 4, which may not have trained them.
    assert [position for position, _ in source.orchestrator.finished(3)] == [6, 7]


@pytest.mark.parametrize("staleness", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_ahead_of_training_every_group_comes_once_and_in_time(staleness: int, seed: int) -> None:
    source = Source([True] * 99, seed=seed, engines=3, staleness=staleness, reference=True)
    seen: list[int] = []
    for version, batch in enumerate(source.batches(30)):
        assert len(batch.groups) == 2
        assert version - min(s.policy_version for g in batch.groups for s in g.rollout.summaries) <= staleness
        references = [group.reference for group in batch.groups if group.reference is not None]
        assert [each.logprobs for each in references] == [f"reference of {number}" for number in ids(batch)]
        assert [each.kl_sums for each in references] == [[0.5], [0.5]]
        seen += ids(batch)
    assert len(set(seen)) == len(seen) == 60
    pending = [*source.orchestrator.pending_positions(), *(each for each, _ in source.orchestrator.finished(30))]
    assert sorted([*seen, *pending]) == list(range(60 + len(pending)))  # drawn, so trained or still on its way
    assert len(pending) <= 2 * staleness


def test_what_fails_is_sampled_again() -> None:
    source = Source([True] * 9, failing=2, engines=1)
    assert [ids(batch) for batch in source.batches(2)] == [[0, 1], [2, 3]]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_what_was_scored_of_a_failed_attempt_is_forgotten(seed: int, whole: bool) -> None:
    """Some samples fail while others of their group wait for a reward or have one."""
    source = Source([True] * 99, seed=seed, engines=3, staleness=1, whole_groups=whole, failing_share=0.15)
    seen: list[int] = []
    for batch in source.batches(12):
        assert [[r.total for r in rewards] for rewards in batch.rewards] == [[1.0, 0.0]] * 2
        seen += ids(batch)
    assert len(set(seen)) == len(seen) == 24
    assert source.num_failed > 0


def test_what_always_fails_is_named() -> None:
    named = r"group \d: 3 attempts in a row gave no response. Last failure: worker/\d: sample \d: out of memory"
    with pytest.raises(WorkerError, match=named):
        Source([True] * 9, failing=999).batch()


@pytest.mark.parametrize("whole", [False, True])
def test_responses_are_scored_as_they_finish_or_a_prompt_s_together(whole: bool) -> None:
    cut = 0
    for seed in range(5):
        source = Source([True] * 9, seed=seed, whole_groups=whole)
        source.batch()
        cut += sum(count != 2 for numbers in source.scored_together for count in Counter(numbers).values())
    assert (cut == 0) == whole


def test_outside_training_everything_comes_in_order() -> None:
    source = Source([True] * 9, engines=2)
    prompts = [source.prompts.take()[1] for _ in range(5)]
    groups = source.evaluated(prompts, sampling_params_of(source.config)[0])
    assert [group.rollout.prompt.index for group in groups] == [0, 1, 2, 3, 4]
    assert [[r.total for r in group.rewards] for group in groups] == [[1.0, 0.0]] * 5


def test_a_batch_that_does_not_come_names_who_is_waited_for() -> None:
    source = Source([True] * 9)
    source.orchestrator._deadline_s = 0.05

    async def never(worker: int, units: object) -> list[object]:
        await asyncio.sleep(60)
        return []

    source.queue._call = never
    with pytest.raises(DeadlineError, match=r"rollout: no answer within 0\.05 s from the scoring workers"):
        source.batch()


@pytest.mark.parametrize("staleness", [0, 1, 3])
@pytest.mark.parametrize("seed", range(12))
def test_cut_off_at_any_moment_every_prompt_is_trained_or_filtered_once(seed: int, staleness: int) -> None:
    """A third of the groups teach nothing, samples fail, and whoever is cut off goes on with what was finished."""
    chance = random.Random(seed)
    useful = [chance.random() < 0.7 for _ in range(400)]
    options: Any = {"staleness": staleness, "zero_variance": "resample", "max_tries": 6, "engines": 3}
    trained: list[int] = []
    num_kept, source = 0, None
    for life in range(6):
        source = Source(useful, seed=100 * seed + life, after=source, failing_share=0.1, **options)
        first = source.step
        batches = source.cut_off(chance.randint(0, 3), chance.randint(0, 60))
        for version, batch in enumerate(batches, start=first):
            oldest = min(each.policy_version for group in batch.trained_groups for each in group.rollout.summaries)
            assert version - staleness <= oldest <= version
            trained += [group.rollout.prompt.index for group in batch.trained_groups]
        ledger = source.orchestrator.ledger(source.step)
        assert ledger["issued"] == source.prompts.cursor
        assert ledger["issued"] == sum(count for name, count in ledger.items() if name != "issued")
        assert ledger["trained"] == len(trained)
        num_kept += ledger["finished"]
    assert source is not None
    assert num_kept > 0
    assert len(set(trained)) == len(trained)
    kept = [position for position, _ in source.orchestrator.finished(source.step)]
    pending = source.orchestrator.pending_positions()
    filtered = set(range(source.prompts.cursor)) - {*trained, *kept, *pending}
    assert len(filtered) == source.orchestrator.ledger(source.step)["filtered"]
    assert not any(useful[position] for position in filtered)


def test_a_step_that_was_cut_off_trains_the_same_prompts_in_the_same_order() -> None:
    whole = [ids(batch) for batch in Source([True] * 20, engines=3).batches(4)]
    for num_turns in range(0, 40, 4):
        first = Source([True] * 20, engines=3, seed=num_turns)
        first.cut_off(2, num_turns)
        rest = Source([True] * 20, engines=3, seed=num_turns + 1, after=first).batches(2)
        assert [[group.rollout.prompt.index for group in batch.groups] for batch in rest] == whole[2:]
