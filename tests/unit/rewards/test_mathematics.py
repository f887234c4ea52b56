"""The rewards of open-r1 that ask whether a mathematical answer is right."""

from __future__ import annotations

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.errors import ConfigError
from rlsys.preflight.rewards import check_reward
from rlsys.rewards import Scores, registry
from rlsys.rewards.accuracy import accuracy
from rlsys.rewards.cosine import cosine
from rlsys.rewards.entry import bind_reward
from rlsys.rewards.length import length
from rlsys.scoring.call import RewardLog, RewardRequest, call_reward

RIGHT, WRONG = "\\boxed{7}", "\\boxed{8}"  # 9 characters each


def padded(answer: str, characters: int) -> str:
    """An answer in a response of that many characters."""
    return "." * (characters - len(answer)) + answer


@pytest.mark.parametrize(
    ("completion", "solution", "value"),
    [
        ("So it is \\boxed{\\frac{63}{400}}.", "\\frac{63}{400}", 1.0),
        ("\\boxed{0.1575}", "\\frac{63}{400}", 1.0),
        ("The final answer is $\\frac{63}{400}$. I hope it is correct.", "$\\frac{63}{400}$", 1.0),
        ("First $3$, at last \\boxed{4}.", "We get $x=4$, so \\boxed{4}.", 1.0),
        ("The final answer is $3$. I hope it is correct. Rather \\boxed{4}.", "4", 1.0),
        ("The final answer is $4$. I hope it is correct. Rather \\boxed{3}.", "4", 0.0),  # what is boxed comes first
        ("\\boxed{\\frac{64}{400}}", "\\frac{63}{400}", 0.0),
        ("\\boxed{\\frac63{400}}", "\\frac{63}{400}", 0.0),  # a malformed operator is no answer
        ("It is $\\frac{63}{400}$.", "\\frac{63}{400}", 0.0),  # nor is a formula that nothing announces
        ("63/400", "\\frac{63}{400}", 0.0),  # nor what is not LaTeX
        ("", "72", 0.0),
        ("\\boxed{72}", "72", 1.0),
        ("\\boxed{72}", 72, 1.0),
        ("\\boxed{1234}", "1,234", 1.0),
        ("\\boxed{(1, 2)}", "(1, 2)", 1.0),
        ("\\boxed{2}", "(1, 2)", 0.0),  # 2 is the last number of the solution, not the solution
        ("\\boxed{10^{100}}", "10^{100}", 1.0),
        ("\\boxed{10}", "10^{100}", 0.0),
        ("\\boxed{2}", ["3", "2"], 1.0),
        ("\\boxed{2}", '["3", "2"]', 1.0),
        ("\\boxed{4}", ["3", "2"], 0.0),
        ("The answer is (B).", "B", 1.0),
        ("<think>\nNot A.\n</think>\n<answer>\nB\n</answer>", "B", 1.0),
        ("\\boxed{C}", "B", 0.0),
        ("\\boxed{72}", None, None),
        ("\\boxed{72}", "", None),
        ("\\boxed{blue}", "the sky", None),
    ],
)
def test_accuracy_by_hand(completion: str, solution: object, value: float | None) -> None:
    assert accuracy([completion, [{"role": "assistant", "content": completion}]], [solution] * 2) == [value, value]


def test_accuracy_reads_the_column_of_open_r1() -> None:
    with pytest.raises(ConfigError, match="reward 'accuracy' needs the column 'solution'"):
        check_reward({"name": "accuracy"}, ["answer"])
    check_reward({"name": "accuracy"}, ["solution"])


def test_cosine_by_hand() -> None:
    # The cosine is 1, sqrt(1/2), 0, -1 after none, a quarter, half, all of max_len; and it stays there.
    lengths = [25, 50, 100, 250]
    quarter = 0.75 + 0.25 * math.sqrt(0.5)
    right = cosine([padded(RIGHT, n) for n in lengths], ["7"] * 4, max_len=100)
    assert right == pytest.approx([quarter, 0.75, 0.5, 0.5])
    wrong = cosine(["", *(padded(WRONG, n) for n in lengths[1:])], ["7"] * 4, max_len=100)
    assert wrong == pytest.approx([0.0, -0.25, -0.5, -0.5])
    assert cosine([RIGHT, WRONG], [None, "the sky"]) == [None, None]


def test_cosine_as_the_paper_has_it_spares_long_wrong_answers() -> None:
    values = {"min_value_wrong": -10.0, "max_value_wrong": 0.0, "min_value_correct": 1.0, "max_value_correct": 2.0}
    completions = ["", padded(WRONG, 50), padded(WRONG, 100), padded(RIGHT, 50), padded(RIGHT, 100)]
    assert cosine(completions, ["7"] * 5, max_len=100, **values) == pytest.approx([-10.0, -5.0, 0.0, 1.5, 1.0])


def test_cosine_s_default_length_is_a_thousand_characters() -> None:
    assert cosine([padded(RIGHT, 500), padded(WRONG, 1000)], ["7", "7"]) == pytest.approx([0.75, -0.5])


def test_cosine_refuses_a_length_of_nothing() -> None:
    with pytest.raises(ConfigError, match="reward 'cosine': max_len=0 must be positive"):
        check_reward({"name": "cosine", "max_len": 0}, ["solution"])


value = st.floats(-3.0, 3.0)


@settings(max_examples=30, deadline=None)
@given(st.tuples(value, value, value, value), st.integers(9, 300), st.booleans())
def test_cosine_against_open_r1_s_formula(values: tuple[float, ...], characters: int, is_right: bool) -> None:
    """Theirs: low + (high - low) / 2 * (1 + cos(pi * progress)), low and high changing places for wrong answers."""
    names = ("min_value_wrong", "max_value_wrong", "min_value_correct", "max_value_correct")
    options: dict[str, Any] = dict(zip(names, values, strict=True))
    low, high = (values[2], values[3]) if is_right else (values[1], values[0])
    wanted = low + 0.5 * (high - low) * (1 + math.cos(characters / 300 * math.pi))
    found = cosine([padded(RIGHT if is_right else WRONG, characters)], ["7"], max_len=300, **options)
    assert found == pytest.approx([wanted])


def scored(groups: list[list[tuple[str, int]]]) -> Scores:
    """`length` of responses (answer and characters) to a prompt each."""
    prompts = [f"prompt {number}" for number, group in enumerate(groups) for _ in group]
    completions = [padded(*response) for group in groups for response in group]
    return length(prompts, completions, ["7"] * len(prompts))


def test_length_by_hand() -> None:
    # Shortest 10, longest 30: 20 is the middle. A wrong response gets 0 where a right one would gain.
    assert scored([[(RIGHT, 10), (RIGHT, 20), (RIGHT, 25), (RIGHT, 30)]]) == [0.5, 0.0, -0.25, -0.5]
    assert scored([[(WRONG, 10), (WRONG, 20), (WRONG, 25), (WRONG, 30)]]) == [0.0, 0.0, -0.25, -0.5]
    assert scored([[(RIGHT, 12), (WRONG, 12), (RIGHT, 12)]]) == [0.0, 0.0, 0.0]


def test_length_compares_the_responses_of_one_prompt() -> None:
    first, second = [(RIGHT, 10), (RIGHT, 20)], [(RIGHT, 100), (WRONG, 300), (RIGHT, 200)]
    assert scored([first, second]) == [*scored([first]), *scored([second])] == [0.5, -0.5, 0.5, -0.5, 0.0]
    assert scored([[(RIGHT, 10)], first]) == [None, 0.5, -0.5]


def test_length_tells_prompts_apart_by_their_solutions_too() -> None:
    completions = [padded(answer, n) for answer, n in ((RIGHT, 10), (RIGHT, 20), (WRONG, 10), (WRONG, 90))]
    chat = [{"role": "user", "content": "?"}]
    assert length([chat] * 4, completions, ["7", "7", "8", "8"]) == [0.5, -0.5, 0.5, -0.5]
    assert length([chat] * 4, completions, [None, None, "8", "8"]) == [None, None, 0.5, -0.5]


responses = st.lists(st.tuples(st.sampled_from([RIGHT, WRONG]), st.integers(9, 40)), min_size=2, max_size=5)


@settings(max_examples=30, deadline=None)
@given(st.lists(responses, min_size=1, max_size=3))
def test_length_against_the_paper_s_formula(groups: list[list[tuple[str, int]]]) -> None:
    wanted = []
    for group in groups:
        for answer, characters in group:
            shortest, longest = min(n for _, n in group), max(n for _, n in group)
            gain = 0.0 if shortest == longest else 0.5 - (characters - shortest) / (longest - shortest)
            wanted.append(gain if answer == RIGHT else min(0.0, gain))
    assert scored(groups) == pytest.approx(wanted)


def test_what_the_system_must_know_of_them() -> None:
    for name in ("accuracy", "cosine", "length", "math_answer"):
        assert registry.fact(name, "imports", ()) == ("math_verify",)
        assert registry.fact(name, "whole_groups", False) is (name == "length")


def test_length_through_the_contract() -> None:
    request = RewardRequest(
        ["?", "?"],
        [padded(RIGHT, 10), padded(RIGHT, 20)],
        [[1], [2]],
        {"solution": ["7", "7"], "level": [1, 1]},
        step=3,
    )
    assert call_reward(bind_reward({"name": "length"}), request, RewardLog()) == [0.5, -0.5]
