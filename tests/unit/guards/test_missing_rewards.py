"""Steps and evaluations without one valid reward are logged, counted, and end the run when they come in a row."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.compose import load_config
from rlsys.evaluation import periodic
from rlsys.evaluation.evaluate import Evaluations
from rlsys.evaluation.periodic import PeriodicEvaluation
from rlsys.guards.guards import Guards
from rlsys.guards.missing_rewards import MissingRewardGuard, NoRewardError
from rlsys.metrics.step import reward_metrics, rollout_metrics
from rlsys.orchestrator.batch import StepBatch
from rlsys.run_folder.checkpoint import RunState
from tests.unit.records import group, reward, scored, summary

FAILED = reward(None, "timeout", label="math", detail="no answer within 5 s")


def batch(*totals: float | None, trained: bool = True, **facts: Any) -> StepBatch:
    """A group of as many rewards as there are totals; None is one that failed."""
    rewards = [FAILED if total is None else reward(total) for total in totals]
    made = scored(group(0, [summary(1) for _ in totals]), rewards, **facts)
    return StepBatch(0, (made,), trained=(0,) if trained else ())


def test_one_valid_reward_is_enough() -> None:
    assert batch(None, 1.0).missing_rewards() is None
    assert StepBatch(0).missing_rewards() is None
    spoiled = StepBatch(0, (scored(group(0, [summary(1)]), [reward(None, "not_finite")]),))
    assert spoiled.missing_rewards() is None  # counted as not finite


def test_a_function_that_applies_nowhere_is_named() -> None:
    nowhere = [reward(None, "not_applicable", label="math")] * 2
    why = StepBatch(0, (scored(group(0, [summary(1)] * 2), nowhere),)).missing_rewards()
    assert str(why).endswith("math: not_applicable: the function returned None")


@pytest.mark.parametrize("trained", [True, False])
def test_none_names_the_first_failure(trained: bool) -> None:
    """Also in groups that were rejected: a function that is broken must not look like a policy that is perfect."""
    why = batch(None, None, trained=trained).missing_rewards()
    assert why == "no trajectory has a valid reward. First failure: math: timeout: no answer within 5 s"


def test_a_baseline_can_be_what_is_missing() -> None:
    assert batch(1.0, 0.0, baseline=reward(0.5)).missing_rewards() is None
    why = batch(1.0, 0.0, baseline=FAILED).missing_rewards()
    assert why == "no prompt has a valid reward for its greedy response, the baseline"


def test_an_evaluation_without_rewards_is_counted_but_the_first_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    guard, lacking = MissingRewardGuard("eval/unscored", 2), ["a: it is down", "b: too"]
    sets: Any = ["one"]
    sampler: Any = None
    evaluation = PeriodicEvaluation(load_config(["eval.every=2"]), sets, sampler, guard)

    async def evaluate(*_: Any) -> Evaluations:
        return Evaluations([], lacking)

    monkeypatch.setattr(periodic, "evaluate", evaluate)
    with pytest.raises(NoRewardError, match="a: it is down; b: too"):
        asyncio.run(evaluation.evaluate(0))
    counts = []
    for missing in (["down"], [], ["down"], ["still down"]):
        lacking[:] = missing
        assert guard.trouble() is None
        counts.append(asyncio.run(evaluation.evaluate(2))["eval/unscored"])
    assert counts == [1.0, 1.0, 2.0, 3.0]
    assert str(guard.trouble()).startswith("2 times in a row")
    assert asyncio.run(evaluation.evaluate(3)) == {}  # not due


def test_several_in_a_row_are_an_alarm_and_a_good_one_starts_the_count_again(caplog: pytest.LogCaptureFixture) -> None:
    guard = MissingRewardGuard("reward/unscored_steps", 2, total=5)
    for why in ("it is down", None, "it is down again"):
        counted = guard.record(1, why)
        assert guard.trouble() is None
    assert counted == {"reward/unscored_steps": 7.0}
    assert caplog.messages == ["step 1: it is down", "step 1: it is down again"]
    guard.record(4, "still down")
    assert guard.trouble() == "2 times in a row (scoring.max_unscored_steps=2): still down"
    resumed = MissingRewardGuard("reward/unscored_steps", 2, in_a_row=1)
    resumed.record(5, "down")
    assert resumed.trouble() is not None


def test_a_step_of_nothing_at_all_has_metrics() -> None:
    """Ahead of training a step can find that all its groups were rejected with the last one's."""
    assert rollout_metrics([], 3) == {"rollout/tokens": 0.0}
    assert reward_metrics([]) == {}


def test_both_counts_go_on_from_a_checkpoint(tmp_path: Path) -> None:
    state = RunState(5, 0, unscored_in_a_row=1, unscored_total=4, eval_unscored_in_a_row=2, eval_unscored_total=3)
    given: Any = None
    guards = Guards.from_config(load_config([]), tmp_path, replace(state, reward_best={"a": 1.0}), given, given)
    assert guards.alarms.signals.best == {"a": 1.0}
    assert guards.rewards.record(6, "down") == {"reward/unscored_steps": 5.0}
    asyncio.run(guards.check())
    assert guards.eval_rewards.record(6, "down") == {"eval/unscored": 4.0}
    with pytest.raises(NoRewardError, match="3 times in a row"):
        asyncio.run(guards.check())
