"""The rewards that decide what counts as correct."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlsys.config.schema import Config, EvalConfig
from rlsys.errors import ConfigError
from rlsys.preflight.rewards import accuracy_note
from rlsys.rewards.judges import judged, judges_of
from rlsys.scoring.combine import combine
from rlsys.types import RewardPart

MINE = """
def score(completions, **_):
    return [1.0 for _ in completions]

score.judges_answers = True

class Judge:
    judges_answers = True

    def __call__(self, completions, **_):
        return [1.0 for _ in completions]

def style(completions, **_):
    return [1.0 for _ in completions]
"""


def judges(*specs: Any, accuracy_from: str | None = None) -> tuple[str, ...]:
    rewards = [spec if isinstance(spec, dict) else {"name": spec} for spec in specs]
    return judges_of(Config(rewards=rewards, eval=EvalConfig(accuracy_from=accuracy_from)))


def test_rewards_that_judge_answers_are_found() -> None:
    assert judges("accuracy", "format", "tag_count") == ("accuracy",)
    assert judges("target_length", "exact_match") == ("exact_match",)
    assert judges("math_answer", {"name": "regex", "pattern": r"\\boxed"}) == ("math_answer",)
    assert judges({"name": "regex", "pattern": "A: (?P<answer>.*)", "flags": "m"}) == ("regex",)
    assert judges("accuracy", "binary_code", "cosine") == ("accuracy", "binary_code")
    assert judges("target_length", "format") == ()


def test_a_named_reward_judges_alone() -> None:
    assert judges("accuracy", "format", accuracy_from="format") == ("format",)
    with pytest.raises(ConfigError, match=r"eval.accuracy_from=acuracy is no reward of this run: did you mean 'accur"):
        judges("accuracy", "format", accuracy_from="acuracy")


def test_outside_code_says_so_by_an_attribute(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(MINE)
    assert judges(f"{tmp_path}/mine.py:style", f"{tmp_path}/mine.py:score") == ("score",)
    assert judges(f"{tmp_path}/mine.py:Judge", "target_length") == ("Judge",)


def test_the_strictest_judge_that_applies_decides() -> None:
    none = RewardPart(None, "not_applicable")
    weights = {"a": 3.0, "b": 1.0, "c": 1.0}
    reward = combine({"a": RewardPart(1.0, "ok"), "b": none, "c": RewardPart(0.5, "ok")}, weights)
    assert judged(reward, ("a",)) == 1.0  # unweighted
    assert judged(reward, ("a", "b")) == 1.0
    assert judged(reward, ("a", "c")) == 0.5
    assert judged(reward, ("b",)) is None
    assert judged(reward, ()) == 3.5
    failed = combine({"a": RewardPart(1.0, "ok"), "b": RewardPart(None, "error")}, weights)
    assert judged(failed, ("a",)) is None


def test_the_log_says_what_decides() -> None:
    assert "judged by exact_match, from 1 on" in accuracy_note(Config())
    note = accuracy_note(Config(rewards=[{"name": "target_length"}], eval=EvalConfig(correct_at=-5.0)))
    assert "no reward says that it judges answers" in note
    assert "total rewards of at least -5" in note
