"""Mathematical answers, scored in the process that guards against runaway expressions."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from rlsys.scoring.call import RewardRequest
from rlsys.scoring.process import RewardProcess
from rlsys.types import RewardPart

RUNAWAY = "RESULT: $9^{9^{9^{9}}}$"


def request(rows: list[tuple[str, object]]) -> RewardRequest:
    """Rows of completion and gold answer."""
    completions, answers = [row[0] for row in rows], [row[1] for row in rows]
    return RewardRequest(["?"] * len(rows), completions, [[1]] * len(rows), {"answer": answers}, step=1)


@pytest.fixture(scope="module")
def process() -> Iterator[RewardProcess]:
    started = RewardProcess({"name": "math_answer"}, call_deadline_s=60.0, row_deadline_s=60.0)
    yield started
    started.close()


@pytest.mark.parametrize(
    ("completion", "answer", "value", "outcome"),
    [
        ("#### 18", "18", 1.0, "ok"),
        ("9 + 9 = 18.\n#### 18", "She makes 9 * 2 = <<9*2=18>>18.\n#### 18", 1.0, "ok"),  # GSM8K's own form
        ("The answer is $18$.", "#### 18", 1.0, "ok"),
        ("The answer is \\boxed{18}.", "#### 18", 1.0, "ok"),
        ("#### 19", "18", 0.0, "ok"),
        ("<think>\n4, 5\n</think>\n<answer>\nB\n</answer>", "B", 1.0, "ok"),
        ("<think>\n4, 5\n</think>\n<answer>\n(1, \\sqrt{2})\n</answer>", "(1, \\sqrt{2})", 1.0, "ok"),
        ("<think>\n4, 5\n</think>\n<answer>6 dollars</answer>", "6", 1.0, "ok"),
        ("<answer>7</answer> or rather <answer>The answer is 6.</answer> 7", "6", 1.0, "ok"),
        ("<answer>5</answer> #### 6", "6", 1.0, "ok"),
        ("<think>18</think><answer>none</answer>", "18", 0.0, "ok"),
        ("#### -18", "18", 0.0, "ok"),
        ("18 is wrong. #### 17", "18", 0.0, "ok"),
        ("#### 0.5", "1/2", 1.0, "ok"),
        ("#### $\\frac{1}{2}$", "0.5", 1.0, "ok"),
        ("#### 1,234", "1234", 1.0, "ok"),
        ("#### 1234", "#### 1,234", 1.0, "ok"),
        ("#### 1,234,567", "1,234,567", 1.0, "ok"),
        ("#### $(1, 2)$", "(1, 2)", 1.0, "ok"),
        ("#### 12", "(1,2)", 0.0, "ok"),  # a comma between the parts of a pair is no thousands' comma
        ("#### 1200", "(1,200)", 0.0, "ok"),
        ("#### 18", 18, 1.0, "ok"),
        ("", "18", 0.0, "ok"),
        ("####", "18", 0.0, "ok"),
        ("I do not know", "18", 0.0, "ok"),
        ("#### \\frac{{{", "18", 0.0, "ok"),
        ("#### (1, 2)", "(1, 2)", 1.0, "ok"),  # not its last number
        ("The answer is (1, 2).", "(1, 2)", 1.0, "ok"),
        ("(1, 2)", "(1, 2)", 1.0, "ok"),
        ("#### (2, 1)", "(1, 2)", 0.0, "ok"),
        ("#### (1, 2)", "2", 0.0, "ok"),
        ("The answer is 10^{100}.", "10^{100}", 1.0, "ok"),
        ("#### 10", "10^{100}", 0.0, "ok"),
        ("The answer is:\n7", "7", 1.0, "ok"),
        ("#### 2", ["2", "two"], 1.0, "ok"),
        ("The answer is two.", ["2", "two"], 1.0, "ok"),
        ("#### Two", '["2", "two"]', 1.0, "ok"),
        ("#### 3", ["2", "two"], 0.0, "ok"),
        ("#### [1, 2]", "[1, 2]", 1.0, "ok"),  # an interval, not two answers
        ("#### 1", "[1, 2]", 0.0, "ok"),
        ("The answer is (B).", "B", 1.0, "ok"),
        ("The answer is (B) Paris", "B", 1.0, "ok"),
        ("\\boxed{\\text{B}}", "(B)", 1.0, "ok"),
        ("**Answer:** b", "B", 1.0, "ok"),
        ("The answer is (C).", "B", 0.0, "ok"),
        ("A cat", "A", 0.0, "ok"),
        ("#### 18", [], None, "not_applicable"),
        ("#### 18", "", None, "not_applicable"),
        ("#### 18", "#### ", None, "not_applicable"),
        ("#### 18", "\\frac{{{", None, "not_applicable"),
    ],
)
def test_answers(process: RewardProcess, completion: str, answer: object, value: float | None, outcome: str) -> None:
    part = process.score(request([(completion, answer)]))[0][0]
    assert (part.value, part.outcome, part.detail) == (value, outcome, "")


def test_a_runaway_expression_costs_its_row_and_a_marker_of_ones_own(tmp_path: Path) -> None:
    # The library is imported and at work before the first call: that is not the function's time.
    (tmp_path / "scored.py").write_text(
        "from rlsys.rewards.math_answer import math_answer\n\nmath_answer(['The answer is 1.'], ['1'])\n"
    )
    spec = {"name": f"{tmp_path}/scored.py:math_answer", "marker": "RESULT:"}
    short = RewardProcess(spec, call_deadline_s=2.0, row_deadline_s=1.0)
    try:
        parts, _ = short.score(request([("The final answer is 3. RESULT: 18", "3, RESULT: 18"), (RUNAWAY, "18")]))
        assert parts[0] == RewardPart(1.0, "ok")
        assert (parts[1].value, parts[1].outcome) == (None, "timeout")
        assert short.score(request([("The final answer is 18. RESULT: 17", "18")]))[0] == [RewardPart(0.0, "ok")]
    finally:
        short.close()
