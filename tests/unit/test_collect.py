"""Rollouts and rewards of a step, drawn again where groups teach nothing; engines and rewards are made up."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from rlsys.collect import collect, has_variance
from rlsys.config import AlgorithmConfig, Config, GroupsConfig
from rlsys.errors import RlsysError
from rlsys.metrics.step import StageClock
from rlsys.preflight import check_config
from rlsys.types import Reward, RewardPart, Sampling

from .records import group, reward, summary


class Source:
    """Prompts, engine and rewards in one: the k-th group drawn has rewards 0 and 1 where `useful` says so."""

    def __init__(self, useful: list[bool], *, greedy: bool = False, **rule: Any) -> None:
        self.useful = useful
        self.drawn = 0
        config = Config()
        config.train.prompts_per_step = 2
        for key, value in rule.items():
            setattr(config.algorithm.groups, key, value)
        sampling = Sampling(1.0, 8, 2)
        self.run: Any = SimpleNamespace(
            config=config,
            prompts=self,
            rollout=self,
            scoring=self,
            sampling=sampling,
            greedy=Sampling(0.0, 8, 1) if greedy else None,
        )
        self.asked: list[int] = []

    def take(self, count: int) -> list[int]:
        self.asked.append(count)
        self.drawn += count
        return list(range(self.drawn - count, self.drawn))

    def generate(self, prompts: list[int], sampling: Sampling, version: int) -> list[Any]:
        return [group(number, [summary(3)] * sampling.samples_per_prompt) for number in prompts]

    def score(self, groups: list[Any], step: int) -> tuple[list[Any], dict[str, float]]:
        out = []
        for each in groups:
            values = [1.0, float(not self.useful[each.group_id])][: len(each.summaries)]
            out.append([reward(value) for value in values])
        return out, {"logged": 1.0}

    def collect(self) -> Any:
        return collect(self.run, 0, 1, StageClock())


def ids(collected: Any) -> list[int]:
    return [collected.groups[i].group_id for i in collected.kept]


def test_kept_as_they_are() -> None:
    source = Source([False, True])
    collected = source.collect()
    assert ids(collected) == [0, 1]
    assert collected.metrics() == {"groups/zero_variance": 1.0, "groups/discarded": 0.0, "groups/tries": 1.0}
    assert collected.logged == {"logged": 1.0}


def test_dropped() -> None:
    collected = Source([False, True], zero_variance="drop").collect()
    assert ids(collected) == [1]
    assert len(collected.groups) == 2


def test_resampled_until_enough_and_nothing_accepted_is_lost() -> None:
    source = Source([True, False, False, True], zero_variance="resample")
    collected = source.collect()
    assert ids(collected) == [0, 3]
    assert source.asked == [2, 1, 1]
    assert collected.metrics() == {"groups/zero_variance": 2.0, "groups/discarded": 2.0, "groups/tries": 3.0}


def test_oversampling_trains_what_it_gets_beyond_the_number_asked_for() -> None:
    source = Source([True, False, True, True, True], zero_variance="resample", oversample=1.5)
    collected = source.collect()
    assert source.asked == [3]
    assert ids(collected) == [0, 2]
    source = Source([True, True, True], zero_variance="resample", oversample=1.5)
    assert ids(source.collect()) == [0, 1, 2]


def test_after_the_last_try_the_step_has_what_there_is() -> None:
    source = Source([False, True, *[False] * 9], zero_variance="resample", max_tries=3)
    collected = source.collect()
    assert ids(collected) == [1]
    assert collected.tries == 3
    assert ids(Source([False] * 9, zero_variance="resample", max_tries=2).collect()) == []


@pytest.mark.parametrize("rule", ["keep", "resample"])
def test_a_greedy_response_of_every_prompt_drawn(rule: str) -> None:
    collected = Source([True, False, True], greedy=True, zero_variance=rule).collect()
    assert collected.greedy_rewards == [1.0] * len(collected.groups)


@pytest.mark.parametrize("rule", ["keep", "drop", "resample"])
def test_a_step_without_one_valid_reward_names_the_failure(rule: str) -> None:
    """Not a group without variance: a reward function that is broken must not look like a policy that is perfect."""
    source = Source([True] * 99, zero_variance=rule, max_tries=2)
    source.score = lambda groups, step: ([[reward(None, "error", detail="no such key")] * 2 for _ in groups], {})  # type: ignore[method-assign]
    with pytest.raises(RlsysError, match=r"no trajectory of this step has a valid reward.*no such key"):
        source.collect()


def test_outside_estimators_may_resample() -> None:
    check_config(Config(algorithm=AlgorithmConfig(advantage={"name": "math:sqrt"}, groups=GroupsConfig("resample"))))


@pytest.mark.parametrize("rule", ["keep", "drop", "resample"])
def test_rewards_that_are_never_finite_are_found_whatever_becomes_of_their_groups(rule: str) -> None:
    source = Source([True] * 99, zero_variance=rule, max_tries=2)
    source.score = lambda groups, step: ([[reward(None, "not_finite")] * 2 for _ in groups], {})  # type: ignore[method-assign]
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
