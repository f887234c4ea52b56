"""The built-in rewards that need no process of their own."""

from __future__ import annotations

import pytest

from rlsys.errors import ConfigError
from rlsys.preflight.rewards import check_reward
from rlsys.rewards import content, registry
from rlsys.rewards.exact_match import exact_match
from rlsys.rewards.soft_overlong_punishment import soft_overlong_punishment
from rlsys.rewards.target_length import target_length

CHAT = [{"role": "user", "content": "1+1"}, {"role": "assistant", "content": " 2\n"}]


def test_the_built_in_rewards() -> None:
    assert registry.names() == [
        "accuracy",
        "binary_code",
        "code",
        "code_format",
        "cosine",
        "easyr1_function",
        "exact_match",
        "format",
        "http",
        "json_schema",
        "length",
        "llm_judge",
        "math_answer",
        "openrlhf_function",
        "reasoning_steps",
        "regex",
        "repetition_penalty",
        "reward_model",
        "soft_overlong_punishment",
        "tag_count",
        "target_length",
        "verl_function",
    ]


def test_content_is_the_last_message_s() -> None:
    assert content(" 2\n") == " 2\n"
    assert content(CHAT) == " 2\n"


def test_exact_match_by_hand() -> None:
    completions = ["95", " 95\n", "95.", "", "95"]
    assert exact_match(completions, ["95", "95", "95", "", "59"]) == [1.0, 1.0, 0.0, 1.0, 0.0]


def test_a_row_without_an_answer_is_not_applicable() -> None:
    assert exact_match(["None", "2"], [None, "2"]) == [None, 1.0]


def test_exact_match_to_the_last_space() -> None:
    assert exact_match(["95", " 95"], ["95", "95"], strip=False) == [1.0, 0.0]


def test_exact_match_of_chats_and_of_numbers() -> None:
    assert exact_match([CHAT, CHAT], [2, "3"]) == [1.0, 0.0]


def test_exact_match_refuses_lists_of_unequal_length() -> None:
    with pytest.raises(ValueError):
        exact_match(["1", "2"], ["1"])


def test_length_by_hand() -> None:
    # -|50 - 0|, -|50 - 50|, -|50 - 53|; and -|4 - 3| for " 2\n"
    assert target_length(["", "x" * 50, "x" * 53]) == [-50.0, 0.0, -3.0]
    assert target_length([CHAT], target=4) == [-1.0]


def test_both_ignore_what_they_do_not_use() -> None:
    assert exact_match(["2"], ["2"], prompts=["1+1="], trainer_state=None) == [1.0]
    assert target_length(["2"], target=1, prompts=["1+1="], completion_ids=[[5]]) == [0.0]


def test_soft_overlong_punishment_by_hand() -> None:
    # Free up to 6 tokens, then a quarter a token, -1 from 10 on.
    ids = [[1] * length for length in (0, 6, 7, 9, 10, 15)]
    found = soft_overlong_punishment(ids, max_response_tokens=10, buffer_tokens=4)
    assert found == pytest.approx([0.0, 0.0, -0.25, -0.75, -1.0, -1.0])
    with pytest.raises(ValueError, match="buffer_tokens=11 must be between 1 and max_response_tokens=10"):
        soft_overlong_punishment(ids, max_response_tokens=10, buffer_tokens=11)
    with pytest.raises(ConfigError, match="reward 'soft_overlong_punishment': buffer_tokens=9 must be between 1 and"):
        check_reward({"name": "soft_overlong_punishment", "max_response_tokens": 8, "buffer_tokens": 9}, ["answer"])
