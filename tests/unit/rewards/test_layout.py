"""The rewards of open-r1 that read how a response is laid out and worded."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.errors import ConfigError
from rlsys.preflight.rewards import check_reward
from rlsys.rewards.code_format import code_format
from rlsys.rewards.format import format_
from rlsys.rewards.reasoning_steps import reasoning_steps
from rlsys.rewards.repetition_penalty import repetition_penalty
from rlsys.rewards.tag_count import tag_count

GOOD = "<think>\nOne and one.\n</think>\n<answer>\n2\n</answer>"
CODE = "<think>\nhm\n</think>\n<answer>\nSo:\n```python\nprint(2)\n```\nDone.\n</answer>"
PIECES = ["<think>", "</think>", "<answer>", "</answer>", "", "x", "```python", "```", "```py"]


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (GOOD, 1.0),
        (GOOD.replace("One and one.", "One\n\nand one."), 1.0),
        (GOOD + "\nand more", 1.0),  # `$` is the end of any line, in open-r1 too
        (GOOD + " and more", 0.0),
        (" " + GOOD, 0.0),
        ("Well.\n" + GOOD, 0.0),
        (GOOD.replace("<think>\n", "<think>"), 0.0),
        (GOOD.replace("\n</answer>", "</answer>"), 0.0),
        (GOOD.replace("</think>\n<answer>", "</think>\n\n<answer>"), 0.0),
        ("<answer>\n2\n</answer>", 0.0),
        ("", 0.0),
    ],
)
def test_format_by_hand(text: str, value: float) -> None:
    assert format_([text, chat(text)]) == [value, value]


@pytest.mark.parametrize(
    ("text", "language", "value"),
    [
        (CODE, "python", 1.0),
        (CODE.replace("python", "python3"), "python", 1.0),  # the name is how the block's begins
        (CODE.replace("python", "Python"), "python", 0.0),
        (CODE.replace("python", "c++"), "c++", 1.0),
        (CODE.replace("python", "ccc"), "c++", 0.0),
        (CODE.replace("```\nDone", "Done"), "python", 0.0),  # never closed
        (
            CODE.replace("hm", "```python\n1\n```").replace("So:\n```python", "So:\n```"),
            "python",
            0.0,
        ),  # while thinking
        (GOOD, "python", 0.0),
    ],
)
def test_code_format_by_hand(text: str, language: str, value: float) -> None:
    assert code_format([text], language=language) == [value]
    assert code_format([CODE]) == [1.0]


def laid_out(lines: list[str], language: str | None) -> float:
    """What the layout means, tried line by line: which lines could be the closing tags?"""
    for middle in range(2, len(lines) - 1):
        if lines[0] != "<think>" or lines[middle : middle + 2] != ["</think>", "<answer>"]:
            continue
        for last in range(middle + 3, len(lines)):
            answer = "\n".join(lines[middle + 2 : last])
            _, opened, rest = answer.partition(f"```{language}")
            if lines[last] == "</answer>" and (language is None or (opened and "```" in rest)):
                return 1.0
    return 0.0


@st.composite
def nearly_right(draw: st.DrawFn) -> list[str]:
    """A response in the right layout with a few lines changed."""
    lines = CODE.split("\n")
    for _ in range(draw(st.integers(0, 4))):
        place = draw(st.integers(0, len(lines)))
        kept = lines[place + 1 :] if draw(st.booleans()) else lines[place:]
        lines = lines[:place] + draw(st.lists(st.sampled_from(PIECES), max_size=2)) + kept
    return lines


@given(nearly_right())
def test_the_layout_against_a_search_by_lines(lines: list[str]) -> None:
    text = "\n".join(lines)
    assert format_([text]) == [laid_out(lines, None)]
    assert code_format([text]) == [laid_out(lines, "python")]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (GOOD, 1.0),
        (GOOD.replace("<think>\n", ""), 0.75),
        (GOOD.replace("\n</answer>", "</answer>"), 0.75),  # not on a line of its own
        ("<think>\n" + GOOD, 0.75),  # twice is as bad as never
        ("<think>\n</think>\n<answer>\n</answer>", 1.0),
        ("<think></think><answer></answer>", 0.0),
        ("", 0.0),
    ],
)
def test_tag_count_by_hand(text: str, value: float) -> None:
    assert tag_count([text, chat(text)]) == [value, value]


@pytest.mark.parametrize(
    ("text", "marks"),
    [
        ("", 0),
        ("Just 2.", 0),
        ("First, add. Next, check.", 2),
        ("Step 1: add\nStep 12: check\nFinally, 2.", 3),
        ("1. add\n2. check\n3. say", 1),  # a number only at the very beginning, as open-r1's pattern has it
        ("Plan:\n- add\n- check\n* say\n- stop", 3),  # four, and three are enough
        ("- add", 0),  # no line break before it
        ("first, second, step 1:", 0),
    ],
)
def test_reasoning_steps_by_hand(text: str, marks: int) -> None:
    assert reasoning_steps([text]) == [marks / 3]


def test_repetition_penalty_by_hand() -> None:
    # "a b a b a": the trigrams aba, bab, aba: a third repeats. In bigrams ab, ba, ab, ba: half.
    assert repetition_penalty(["a b a b a", "A b\na  B a"]) == pytest.approx([-1 / 3, -1 / 3])
    assert repetition_penalty(["a b a b a"], n_grams=2, max_penalty=-0.5) == pytest.approx([-0.25])
    assert repetition_penalty(["", "a b", "a a", "a b c", "a b c d"]) == [0.0] * 5  # too short, or nothing repeats
    assert repetition_penalty([chat("a a a a")]) == [-0.5]  # two trigrams, one of them again


@given(st.lists(st.sampled_from("ab"), max_size=12), st.integers(1, 4), st.floats(-2.0, 0.0))
def test_repetition_penalty_against_counting(words: list[str], n: int, penalty: float) -> None:
    counts = Counter(" ".join(words[start : start + n]) for start in range(len(words)) if start + n <= len(words))
    again = sum(count - 1 for count in counts.values())
    wanted = penalty * again / counts.total() if counts else 0.0
    assert repetition_penalty([" ".join(words)], n_grams=n, max_penalty=penalty) == pytest.approx([wanted])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"max_penalty": 0.5}, "max_penalty=0.5 must be 0 or negative"),
        ({"n_grams": 0}, "n_grams=0 must be a whole number, at least 1"),
        ({"n_grams": 2.5}, "n_grams=2.5 must be a whole number"),
    ],
)
def test_a_penalty_that_would_not_penalise_is_refused(options: dict[str, Any], said: str) -> None:
    (name,) = options
    with pytest.raises(ConfigError, match=f"reward 'repetition_penalty': .*{name}"):
        check_reward({"name": "repetition_penalty", **options}, ["answer"])
    with pytest.raises(ValueError, match=said):
        repetition_penalty(["a"], **options)
