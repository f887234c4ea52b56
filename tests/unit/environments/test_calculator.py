"""The calculator, and the messages from which a policy learns to use it."""

from __future__ import annotations

import json

from rlsys.data.tool_calculator import tool_calculator
from rlsys.environments.calculator import multiply
from rlsys.environments.tools import schema_of


def test_products_are_of_two_digits_and_splits_are_disjoint() -> None:
    train, test = tool_calculator("train"), tool_calculator("test", held_out=200)
    assert (len(train), len(test)) == (8100 - 200, 200)
    assert {row["prompt"] for row in train}.isdisjoint(row["prompt"] for row in test)
    a, b = map(int, test[0]["prompt"].rstrip("=").split("*"))
    assert test[0]["answer"] == str(multiply(a, b))
    assert schema_of(multiply)["function"]["name"] == "multiply"


def test_shown_messages_call_guess_or_give_the_result() -> None:
    rows = tool_calculator("shown", num_shown=800)
    after = [row for row in rows if len(row["prompt"]) == 3]
    assert len(after) == 400
    assert all(row["prompt"][-1]["content"] == row["answer"] for row in after)
    calls = [json.loads(row["answer"]) for row in rows if row["answer"].startswith("{")]
    assert 0.15 < len(calls) / 400 < 0.35
    assert {call["f"] for call in calls} == {"multiply"}
