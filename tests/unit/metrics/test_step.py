"""Records to numbers."""

from __future__ import annotations

import time

import pytest

from rlsys.metrics.step import StageClock, reward_metrics, rollout_metrics
from rlsys.types import Reward, RewardPart
from tests.unit.records import group, reward, summary


@pytest.fixture
def ticking(monkeypatch: pytest.MonkeyPatch) -> None:
    """A clock that reads 0, 1, 3, 6, 10, ... seconds."""
    readings = iter([n * (n + 1) / 2 for n in range(20)])
    monkeypatch.setattr(time, "perf_counter", lambda: next(readings))


@pytest.mark.usefixtures("ticking")
def test_stages_and_the_whole_step_by_hand() -> None:
    clock = StageClock()  # reads 0
    with clock.stage("rollout"):  # 1 to 3
        pass
    with clock.stage("scoring"):  # 6 to 10
        pass
    with clock.stage("rollout"):  # 15 to 21: added to the first
        pass
    assert clock.metrics() == {"time/rollout_s": 8.0, "time/scoring_s": 4.0, "time/step_s": 28.0}


def test_rollout_metrics_by_hand() -> None:
    groups = [
        group(0, [summary(4, version=3), summary(6, finish="length", version=5)]),
        group(1, [summary(2, version=7), summary(8, finish="length", version=6)]),
    ]
    assert rollout_metrics(groups, policy_version=8) == {
        "rollout/tokens": 32.0,  # four prompts of 3, and 4 + 6 + 2 + 8
        "rollout/response_tokens/mean": 5.0,
        "rollout/truncated_fraction": 0.5,
        "rollout/staleness/max": 5.0,  # the oldest is version 3
        "rollout/staleness/mean": 2.75,
        "rollout/staleness/count_1": 1.0,
        "rollout/staleness/count_2": 1.0,
        "rollout/staleness/count_3": 1.0,
        "rollout/staleness/count_5": 1.0,
    }


def test_reward_metrics_by_hand() -> None:
    rewards = [
        [reward(1.0), reward(4.0), reward(None, "timeout")],
        [reward(None, "error"), reward(None, "not_applicable"), reward(1.0)],
    ]
    assert reward_metrics(rewards) == {
        "reward/total/mean": 2.0,  # (1 + 4 + 1) / 3
        "reward/total/std": pytest.approx(2**0.5),  # deviations -1 2 -1: sqrt(6 / 3)
        "reward/exact_match/mean": 2.0,
        "reward/exact_match/timeout": 1.0,
        "reward/exact_match/error": 1.0,
        "reward/exact_match/not_finite": 0.0,
        "reward/exact_match/not_applicable": 1.0,
        "reward/masked_trajectories": 3.0,
    }


def test_each_part_has_its_own_mean() -> None:
    parts = {"match": RewardPart(1.0, "ok"), "length": RewardPart(-4.0, "ok")}
    failed = {"match": RewardPart(0.0, "ok"), "length": RewardPart(None, "error", "broken")}
    metrics = reward_metrics([[Reward(-1.0, parts, "ok"), Reward(None, failed, "error")]])
    assert metrics["reward/match/mean"] == 0.5  # also of the trajectory that the other part masks
    assert metrics["reward/length/mean"] == -4.0
    assert (metrics["reward/match/error"], metrics["reward/length/error"]) == (0.0, 1.0)
    assert metrics["reward/masked_trajectories"] == 1.0


def test_without_a_valid_reward_there_is_no_mean() -> None:
    metrics = reward_metrics([[reward(None, "error")]])
    assert metrics["reward/total/mean"] is None
    assert metrics["reward/total/std"] is None
    assert metrics["reward/exact_match/mean"] is None
