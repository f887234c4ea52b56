"""From prompts to a step's groups, drawn again where groups teach nothing; engines and rewards are made up."""

from __future__ import annotations

import random
from collections import Counter
from typing import Any

import numpy as np
import pytest

from rlsys.build import run as build
from rlsys.config.schema import AlgorithmConfig, Config, GroupsConfig
from rlsys.data.order import EpochOrder
from rlsys.data.stream import PromptStream
from rlsys.errors import RlsysError, WorkerError
from rlsys.metrics.step import StageClock
from rlsys.orchestrator.step_batch import has_variance
from rlsys.preflight.checks import check_config
from rlsys.runtime.occupancy import Occupancy
from rlsys.types import Finished, GroupRequest, Prompt, Reward, RewardPart, RolloutGroup, TrajectoryRef
from tests.unit.records import group, reward, summary, text_of


class FakeCalls:
    """Calls that are answered one by one, in an order of the seed's."""

    def __init__(self, seed: int) -> None:
        self._open: list[tuple[Any, Any]] = []
        self._random = random.Random(seed)
        self.occupancy = Occupancy()

    def start(self, ref: Any, *, done: Any, **_: Any) -> None:
        self._open.append((ref, done))

    def until(self, ready: Any, *, late: Any, **_: Any) -> None:
        while not ready():
            if not self._open:
                raise AssertionError(f"nothing is under way, and it is not ready: {late()}")
            ref, done = self._open.pop(self._random.randrange(len(self._open)))
            done(ref() if callable(ref) else ref)


class Source:
    """Prompts, engines, reward and reference workers in one: the k-th prompt's group has rewards 0 and 1 where `useful`
    says so, and otherwise two alike. Samples finish in an order of the seed's."""

    def __init__(
        self,
        useful: list[bool],
        *,
        greedy: bool = False,
        seed: int = 0,
        engines: int = 2,
        staleness: int = 0,
        reference: bool = False,
        failing: int = 0,
        failing_share: float = 0.0,
        whole_groups: bool = False,
        on_error: str = "mask",
        **rule: Any,
    ) -> None:
        self.useful = useful
        self.config = Config()
        self.config.train.prompts_per_step = 2
        self.config.train.max_staleness = staleness
        self.config.train.samples_per_prompt = 2
        self.config.train.num_steps = 10_000
        self.config.scoring.whole_groups = whole_groups
        self.config.scoring.on_error = on_error
        self.config.rollout.num_workers = self.num_workers = engines
        if greedy:
            self.config.algorithm.advantage = {"name": "remax"}
        for key, value in rule.items():
            setattr(self.config.algorithm.groups, key, value)
        self.names = [f"worker/{engine}" for engine in range(3)][:engines]
        self.deadline_s = 1.0
        self.random = random.Random(seed)
        self.failing = failing  # samples that fail, the first ones
        self.failing_share = failing_share  # of the first attempts
        self.num_failed = 0
        self.running: dict[int, list[Finished]] = {engine: [] for engine in range(engines)}
        self.reward_of = lambda number, sample: reward([1.0, float(not self.useful[number]), 1.0][sample])
        self.scored_together: list[list[int]] = []  # prompts of each call
        prompts = [Prompt(number, "", np.array([1], dtype=np.int32)) for number in range(len(useful))]
        self.prompts = PromptStream(prompts, EpochOrder(len(prompts), [0], shuffle=False))
        calls: Any = FakeCalls(seed)
        workers: Any = self
        self.sampler = build.build_sampler(calls, self.config, workers, workers)
        self.pipeline = build.build_pipeline(
            self.config, 0, calls, self.sampler, workers if reference else None, self.prompts
        )

    def begin_submit(self, engine: int, requests: list[GroupRequest], version: int) -> None:
        for request in requests:
            for sample in range(request.sampling.samples_per_prompt):
                key = (request.group_id, request.attempt, request.first_sample + sample)
                self.running[engine].append(Finished(*key, summary(3, version=version, engine=engine)))
                self.failing -= 1
                unlucky = request.attempt == 1 and self.random.random() < self.failing_share
                self.num_failed += unlucky
                if self.failing >= 0 or unlucky:
                    self.running[engine][-1] = Finished(*key, None, "out of memory")

    def begin_finished(self, engine: int, max_wait_s: float, linger_s: float) -> tuple[Any, list[int]]:
        chunk: list[int] = []

        def answer() -> list[Finished]:
            self.random.shuffle(self.running[engine])
            count = self.random.randint(0, len(self.running[engine]))
            told, self.running[engine] = self.running[engine][:count], self.running[engine][count:]
            chunk.extend(finished.sample for finished in told)
            return told

        return answer, chunk

    def begin_cancel(self, engine: int, group_ids: list[int]) -> None:
        self.running[engine] = [f for f in self.running[engine] if f.group_id not in group_ids]

    def begin_score(self, worker: int, items: list[tuple[Prompt, TrajectoryRef]], step: int) -> Any:
        self.scored_together.append([prompt.index for prompt, _ in items])
        rewards = [self.reward_of(prompt.index, ref.chunk[ref.index]) for prompt, ref in items]
        texts = [f"{prompt.index}, {ref.chunk[ref.index]}" for prompt, ref in items]
        return (rewards, {"logged": 1.0}), texts

    def begin_logprobs(self, worker: int, groups: list[RolloutGroup]) -> tuple[Any, list[Any]]:
        return [[0.5] for _ in groups], [f"reference of {group.group_id}" for group in groups]

    def collect(self, version: int = 0) -> Any:
        return self.pipeline.collect(version, StageClock())


def ids(collected: Any) -> list[int]:
    return [collected.groups[i].group_id for i in collected.kept]


def test_kept_as_they_are() -> None:
    source = Source([False, True])
    collected = source.collect()
    assert ids(collected) == [0, 1]
    assert collected.metrics() == {"groups/zero_variance": 1.0, "groups/discarded": 0.0, "groups/tries": 1.0}
    assert collected.logged == {"logged": 1.0}
    texts = [[text_of(reward.response) for reward in rewards] for rewards in collected.rewards]
    assert texts == [["0, 0", "0, 1"], ["1, 0", "1, 1"]]  # each prompt's samples, wherever they were scored


def test_dropped() -> None:
    collected = Source([False, True], zero_variance="drop").collect()
    assert ids(collected) == [1]
    assert len(collected.groups) == 2


def test_resampled_until_enough_and_nothing_accepted_is_lost() -> None:
    source = Source([True, False, False, True], zero_variance="resample")
    collected = source.collect()
    assert ids(collected) == [0, 3]
    assert collected.metrics() == {"groups/zero_variance": 2.0, "groups/discarded": 2.0, "groups/tries": 2.0}  # 4 for 2


def test_oversampling_trains_what_it_gets_beyond_the_number_asked_for() -> None:
    source = Source([True, False, True, True, True], zero_variance="resample", oversample=1.5)
    collected = source.collect()
    assert len(collected.groups) == 3
    assert ids(collected) == [0, 2]
    source = Source([True, True, True], zero_variance="resample", oversample=1.5)
    assert ids(source.collect()) == [0, 1, 2]


def test_after_the_last_try_the_step_has_what_there_is() -> None:
    source = Source([False, True, *[False] * 9], zero_variance="resample", max_tries=3)
    collected = source.collect()
    assert ids(collected) == [1]
    assert collected.tries == 3  # 6 prompts for 2
    assert ids(Source([False] * 9, zero_variance="resample", max_tries=2).collect()) == []


@pytest.mark.parametrize("rule", ["keep", "resample"])
def test_a_greedy_response_of_every_prompt_drawn(rule: str) -> None:
    collected = Source([True, False, True], greedy=True, zero_variance=rule).collect()
    assert collected.greedy_rewards == [1.0] * len(collected.groups)


@pytest.mark.parametrize("rule", ["keep", "drop", "resample"])
def test_a_step_without_one_valid_reward_names_the_failure(rule: str) -> None:
    """Not a group without variance: a reward function that is broken must not look like a policy that is perfect."""
    source = Source([True] * 99, zero_variance=rule, max_tries=2)
    source.reward_of = lambda number, sample: reward(None, "error", detail="no such key")
    lacking = source.collect().lacks()
    assert lacking is not None
    assert "no such key" in lacking


def failing(number: int, sample: int) -> Reward:
    """Of prompt 1 the second response's function failed."""
    return reward(None, "timeout", detail="too slow") if (number, sample) == (1, 1) else reward(float(sample))


def test_a_failed_reward_leaves_its_trajectory_out() -> None:
    source = Source([True] * 9)
    source.reward_of = failing
    collected = source.collect()
    assert ids(collected) == [0, 1]
    assert [[r.total for r in rewards] for rewards in collected.rewards] == [[0.0, 1.0], [0.0, None]]


def test_a_failed_reward_may_drop_its_group() -> None:
    source = Source([True] * 9, on_error="drop_group")
    source.reward_of = failing
    collected = source.collect()
    assert ids(collected) == [0]
    assert collected.metrics()["groups/discarded"] == 1.0
    assert ids(source.collect(1)) == [2, 3]


def test_a_dropped_group_is_replaced_where_groups_are_resampled() -> None:
    source = Source([True] * 9, on_error="drop_group", zero_variance="resample")
    source.reward_of = failing
    assert ids(source.collect()) == [0, 2]


def test_a_failed_reward_may_end_the_run() -> None:
    source = Source([True] * 9, on_error="raise")
    source.reward_of = failing
    with pytest.raises(RlsysError, match=r"prompt 1: .*too slow.*scoring.on_error=raise"):
        source.collect()


def test_outside_estimators_may_resample() -> None:
    check_config(Config(algorithm=AlgorithmConfig(advantage={"name": "math:sqrt"}, groups=GroupsConfig("resample"))))


@pytest.mark.parametrize("rule", ["keep", "drop", "resample"])
def test_rewards_that_are_never_finite_are_found_whatever_becomes_of_their_groups(rule: str) -> None:
    source = Source([True] * 99, zero_variance=rule, max_tries=2)
    source.reward_of = lambda number, sample: reward(None, "not_finite")
    collected = source.collect()
    assert len(collected.offenders()) == 2 * len(collected.groups) > 0


def test_gdpo_looks_at_the_parts() -> None:
    """Equal totals of different parts teach it something."""
    apart = [Reward(1.0, {"a": RewardPart(a, "ok"), "b": RewardPart(1.0 - a, "ok")}, "ok") for a in (0.0, 1.0)]
    assert not has_variance(apart, by_parts=False)
    assert has_variance(apart, by_parts=True)
    assert not has_variance([apart[0], apart[0]], by_parts=True)


def test_what_is_not_finite_is_named() -> None:
    collected = Source([True, True]).collect()
    assert collected.offenders() == []
    collected.rewards[0][1] = reward(None, "not_finite")
    collected.groups[1] = group(1, [summary(3), summary(3, finite=False)])
    assert [(o.group, o.sample, o.what) for o in collected.offenders()] == [
        (0, 1, "reward"),
        (1, 1, "engine log-probability"),
    ]
    collected.kept = [0]
    assert [o.group for o in collected.offenders()] == [0]


@pytest.mark.parametrize("seed", range(5))
def test_synchronous_batches_do_not_depend_on_who_was_faster(seed: int) -> None:
    source = Source([True] * 20, seed=seed, engines=3)
    for version in range(4):
        assert ids(source.collect(version)) == [2 * version, 2 * version + 1]
    assert source.pipeline.pending_places == []


@pytest.mark.parametrize("staleness", [1, 4])
@pytest.mark.parametrize("seed", range(4))
def test_ahead_of_training_every_group_comes_once_and_in_time(staleness: int, seed: int) -> None:
    source = Source([True] * 99, seed=seed, engines=3, staleness=staleness, reference=True)
    seen: list[int] = []
    for version in range(30):
        collected = source.collect(version)
        assert len(collected.groups) == 2
        assert version - min(s.policy_version for g in collected.groups for s in g.summaries) <= staleness
        assert collected.ref_logprobs == [f"reference of {group.group_id}" for group in collected.groups]
        assert collected.kl_sums == [[0.5], [0.5]]
        seen += ids(collected)
    assert len(set(seen)) == len(seen) == 60
    pending = source.pipeline.pending_places
    assert sorted([*seen, *pending]) == list(range(60 + len(pending)))  # drawn, so trained or still on its way
    assert len(pending) <= 2 * staleness


def test_what_fails_is_sampled_again() -> None:
    source = Source([True] * 9, failing=2, engines=1)
    assert ids(source.collect()) == [0, 1]
    assert ids(source.collect(1)) == [2, 3]


@pytest.mark.parametrize("whole", [False, True])
@pytest.mark.parametrize("seed", range(20))
def test_what_was_scored_of_a_failed_attempt_is_forgotten(seed: int, whole: bool) -> None:
    """Some samples fail while others of their group are told in the same breath, wait for a reward or have one."""
    source = Source([True] * 99, seed=seed, engines=3, staleness=1, whole_groups=whole, failing_share=0.15)
    seen: list[int] = []
    for version in range(12):
        collected = source.collect(version)
        assert [[r.total for r in rewards] for rewards in collected.rewards] == [[1.0, 0.0]] * 2
        seen += ids(collected)
    assert len(set(seen)) == len(seen) == 24
    assert source.num_failed > 0


def test_what_always_fails_is_named() -> None:
    with pytest.raises(WorkerError, match=r"failed in 3 of 3 attempts. Last failure: worker/\d: out of memory"):
        Source([True] * 9, failing=999).collect()


@pytest.mark.parametrize("whole", [False, True])
def test_responses_are_scored_as_they_finish_or_a_prompt_s_together(whole: bool) -> None:
    cut = 0
    for seed in range(5):
        source = Source([True] * 9, seed=seed, whole_groups=whole)
        source.collect()
        cut += sum(count != 2 for numbers in source.scored_together for count in Counter(numbers).values())
    assert (cut == 0) == whole


def test_outside_training_everything_comes_in_order() -> None:
    source = Source([True] * 9, engines=2)
    prompts = [source.prompts.take()[1] for _ in range(5)]
    groups, rewards = source.sampler.complete(prompts, build.sampling_plan(source.config)[0], 0)
    assert [group.prompt.index for group in groups] == [0, 1, 2, 3, 4]
    assert [[r.total for r in group] for group in rewards] == [[1.0, 0.0]] * 5
