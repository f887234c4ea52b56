"""How units are divided into calls of a scoring worker."""

from __future__ import annotations

import asyncio
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from rlsys.scoring.pool import ScoringPool, calls_apart
from rlsys.types import Messages, Prompt, ScoringUnit


def unit(text: str | Messages, step: int = 1) -> ScoringUnit:
    return ScoringUnit(Prompt(0, text, np.array([1], dtype=np.int32)), (), step=step)


def test_groups_of_the_same_prompt_are_in_different_calls() -> None:
    assert calls_apart([unit(text) for text in "aaa"], whole_groups=True) == [[0], [1], [2]]
    assert calls_apart([unit(text) for text in "aaa"], whole_groups=False) == [[0, 1, 2]]
    assert calls_apart([unit(text) for text in "abcab"], whole_groups=True) == [[0, 1, 2], [3, 4]]
    chat: Messages = [{"role": "user", "content": "?"}]
    assert calls_apart([unit(chat), unit(list(chat))], whole_groups=True) == [[0], [1]]
    assert calls_apart([], whole_groups=True) == []


@given(st.lists(st.tuples(st.sampled_from("abcd"), st.integers(1, 3)), max_size=12), st.booleans())
def test_a_call_has_one_step_and_where_asked_for_no_prompt_twice(
    given_units: list[tuple[str, int]], whole_groups: bool
) -> None:
    calls = calls_apart([unit(*each) for each in given_units], whole_groups=whole_groups)
    assert sorted(index for call in calls for index in call) == list(range(len(given_units)))
    for call in calls:
        assert call == sorted(call)
        assert len({given_units[index][1] for index in call}) == 1
        assert not whole_groups or len({given_units[index][0] for index in call}) == len(call)
    if not whole_groups:
        assert len(calls) == len({step for _, step in given_units})


def test_units_of_several_steps_get_the_scores_of_their_own() -> None:
    class Pool(ScoringPool):
        def __init__(self) -> None:
            self._whole_groups = False

        async def _call(self, worker: int, units: list[ScoringUnit]) -> Any:
            (step,) = {unit.step for unit in units}
            return [(unit.prompt.text, step) for unit in units]

    units = [unit("a", 2), unit("b", 1), unit("c", 2), unit("d", 1)]
    assert asyncio.run(Pool()._score(0, units)) == [("a", 2), ("b", 1), ("c", 2), ("d", 1)]
