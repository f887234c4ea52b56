"""Environments, tools and limits that cannot work are refused before Ray starts."""

from __future__ import annotations

from typing import Any

import pytest

from rlsys.config.compose import load_config
from rlsys.errors import ConfigError
from rlsys.preflight.episodes import check_episodes
from tests.unit.data.templates import tokenizer_of
from tests.unit.environments.test_entry import ENVS


def check(*overrides: str, family: str = "qwen2.5", context: int = 512) -> Any:
    return check_episodes(load_config(list(overrides)), tokenizer_of(family), context)


def test_limits_are_written_out_and_rewards_that_never_come_have_no_weight() -> None:
    config = check(f"environment={ENVS}:Counter")
    assert (config.episodes.max_tokens, config.episodes.reward_weight) == (512, 1.0)
    assert check(f"environment={ENVS}:Rewardless").episodes.reward_weight == 0.0
    assert check(f"tools=['{ENVS}:double']", "episodes.max_tokens=100").episodes.max_tokens == 100
    assert check("environment=guess_number", family="gemma").episodes.reward_weight == 1.0


@pytest.mark.parametrize(
    ("overrides", "family", "said"),
    [
        (["environment=guess_number", "episodes.max_tokens=600"], "qwen2.5", "more than the model's context of 512"),
        (["environment=guess_number", "episodes.on_end={max_turn: mask}"], "qwen2.5", "did you mean 'max_turns'"),
        (["environment=guess_number", "episodes.on_end={max_turns: forget}"], "qwen2.5", "one of train, mask, drop"),
        ([f"tools=['{ENVS}:bare']"], "qwen2.5", "type hints, and a docstring"),
        ([f"environment={ENVS}:Untyped"], "qwen2.5", "tool 'add'"),
        ([f"environment={ENVS}:double"], "qwen2.5", "must be a class"),
        ([f"tools=['{ENVS}:double']"], "gemma", "does not show tools"),
    ],
)
def test_what_cannot_work_is_refused(overrides: list[str], family: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check(*overrides, family=family)
