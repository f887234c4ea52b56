"""How units are divided into calls of a scoring worker."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlsys.scoring.pool import calls_apart
from rlsys.types import Messages, Prompt, ScoringUnit


def unit(text: str | Messages) -> ScoringUnit:
    return ScoringUnit(Prompt(0, text, np.array([1], dtype=np.int32)), (), step=1)


def texts(calls: list[list[ScoringUnit]]) -> list[list[str | Messages]]:
    return [[each.prompt.text for each in call] for call in calls]


def test_groups_of_the_same_prompt_are_in_different_calls() -> None:
    assert texts(calls_apart([unit(text) for text in "aaa"])) == [["a"], ["a"], ["a"]]
    assert texts(calls_apart([unit(text) for text in "abcab"])) == [["a", "b", "c"], ["a", "b"]]
    chat: Messages = [{"role": "user", "content": "?"}]
    assert texts(calls_apart([unit(chat), unit(list(chat))])) == [[chat], [chat]]
    assert calls_apart([]) == []


@given(st.lists(st.sampled_from("abcd"), max_size=12))
def test_order_is_kept_and_no_prompt_occurs_twice(prompts: list[str]) -> None:
    calls = texts(calls_apart([unit(text) for text in prompts]))
    assert [text for call in calls for text in call] == prompts
    assert all(len(set(map(str, call))) == len(call) for call in calls)
