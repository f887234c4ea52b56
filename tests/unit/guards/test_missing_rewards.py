"""Steps without one valid reward are said, counted, and end the run when they come in a row."""

from __future__ import annotations

import importlib
from types import SimpleNamespace
from typing import Any

import pytest

from rlsys.config.compose import load_config
from rlsys.evaluation.evaluate import Evaluations
from rlsys.guards.missing_rewards import NoRewardError, Unscored
from rlsys.metrics.step import reward_metrics, rollout_metrics
from rlsys.orchestrator.step_batch import Collected
from tests.unit.records import group, reward, summary

train = importlib.import_module("rlsys.train")  # `rlsys.train` itself is the function of the Python entry
FAILED = reward(None, "timeout", label="math", detail="no answer within 5 s")


def collected(*totals: float | None, greedy: list[float | None] | None = None, kept: bool = True) -> Collected:
    """A group of as many rewards as there are totals; None is one that failed."""
    rewards = [FAILED if total is None else reward(total) for total in totals]
    groups = [group(0, [summary(1) for _ in totals])]
    return Collected(groups=groups, rewards=[rewards], greedy_rewards=greedy, kept=[0] if kept else [])


def test_one_valid_reward_is_enough() -> None:
    assert collected(None, 1.0).lacks() is None
    assert Collected().lacks() is None
    spoiled = Collected(rewards=[[reward(None, "not_finite")]])
    assert spoiled.lacks() is None  # counted as an offender


def test_a_function_that_applies_nowhere_is_named() -> None:
    nowhere = Collected(rewards=[[reward(None, "not_applicable", label="math")] * 2])
    assert str(nowhere.lacks()).endswith("math: not_applicable: the function returned None")


@pytest.mark.parametrize("kept", [True, False])
def test_none_names_the_first_failure(kept: bool) -> None:
    """In groups that were rejected as well: a function that is broken must not look like a policy that is perfect."""
    why = collected(None, None, kept=kept).lacks()
    assert why == "no trajectory has a valid reward. First failure: math: timeout: no answer within 5 s"


def test_a_baseline_can_be_what_lacks() -> None:
    assert collected(1.0, 0.0, greedy=[0.5]).lacks() is None
    why = collected(1.0, 0.0, greedy=[None]).lacks()
    assert why == "no prompt has a valid reward for its greedy response, the baseline"


def run(steps: Unscored, *lacking: str) -> Any:
    """As far as an evaluation looks at it."""
    prepared = SimpleNamespace(eval_sets=["one"], lacking=list(lacking))
    return SimpleNamespace(config=load_config(["eval.every=2"]), unscored_evals=steps, sampler=None, prepared=prepared)


def test_an_evaluation_without_rewards_is_counted_but_the_first_ends_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    steps = Unscored("eval/unscored", 2, lambda _: None)
    asked = run(steps)
    monkeypatch.setattr(train, "evaluate", lambda *_: Evaluations([], asked.prepared.lacking))
    asked.prepared.lacking = ["a: it is down", "b: too"]
    with pytest.raises(NoRewardError, match="a: it is down; b: too"):
        train._evaluation(asked, 0)
    counts = []
    for lacking in (["down"], [], ["down"], ["still down"]):
        asked.prepared.lacking = lacking
        steps.check()
        counts.append(train._evaluation(asked, 2)["eval/unscored"])
    assert counts == [1.0, 1.0, 2.0, 3.0]
    with pytest.raises(NoRewardError, match=r"2 times in a row .* still down"):
        steps.check()


def test_several_in_a_row_end_the_run_and_a_good_one_starts_the_count_again() -> None:
    said: list[str] = []
    steps = Unscored("reward/unscored_steps", 2, said.append, total=5)
    for why in ("it is down", None, "it is down again"):
        counted = steps.record(1, why)
        steps.check()
    assert counted == {"reward/unscored_steps": 7.0}
    assert said == ["step 1: it is down", "step 1: it is down again"]
    steps.record(4, "still down")
    with pytest.raises(NoRewardError, match=r"2 times in a row .*max_unscored_steps=2.* still down"):
        steps.check()
    with pytest.raises(NoRewardError):  # a resumed run goes on counting
        Unscored("reward/unscored_steps", 2, said.append, in_a_row=2).check()


def test_a_step_of_nothing_at_all_has_metrics() -> None:
    """Ahead of training a step can find that all its groups were rejected with the last one's."""
    assert rollout_metrics([], 3) == {"rollout/tokens": 0.0}
    assert reward_metrics([], {}) == {}
