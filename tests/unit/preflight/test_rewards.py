"""What preflight finds in the columns that rewards read."""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import pytest

from rlsys.errors import ConfigError
from rlsys.preflight.rewards import check_rewards
from rlsys.types import Prompt


def prompts(**columns: list[Any]) -> list[Prompt]:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    return [Prompt(index, "?", np.array([1], dtype=np.int32), row) for index, row in enumerate(rows)]


def test_gold_answers_that_cannot_be_parsed_are_counted_and_the_first_is_shown(
    caplog: pytest.LogCaptureFixture,
) -> None:
    answers = ["#### 18", None, "\\frac{{{", ["2", "two"], "B", ""]
    with caplog.at_level(logging.WARNING, "rlsys"):
        check_rewards([{"name": "math_answer"}], prompts(answer=answers), "rows.jsonl")
    assert "rows.jsonl: reward 'math_answer' cannot work with 2 of 5 values of the column 'answer'" in caplog.text
    assert "the first in row 2: '\\\\frac{{{'" in caplog.text
    caplog.clear()
    check_rewards([{"name": "math_answer", "marker": "A:"}], prompts(answer=["A: 1", "2"]), "rows.jsonl")
    assert not caplog.text


@pytest.mark.parametrize(
    ("name", "columns"),
    [
        ("math_answer", {"answer": ["", "#### "]}),
        ("accuracy", {"solution": ["the sky", ""]}),
        ("code", {"verification_info": ["{not json", '{"language": "python"}']}),
    ],
)
def test_a_column_without_one_usable_value_is_refused(name: str, columns: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=rf"rows.jsonl: reward '{name}' cannot work with 2 of 2 values"):
        check_rewards([{"name": name}], prompts(**columns), "rows.jsonl")


@pytest.mark.parametrize("name", ["math_answer", "code"])
def test_rows_of_another_task_may_have_empty_values(name: str, caplog: pytest.LogCaptureFixture) -> None:
    rows = prompts(answer=["", ""], verification_info=["", {}])
    with caplog.at_level(logging.WARNING, "rlsys"):
        check_rewards([{"name": name}, {"name": "target_length"}], rows, "other.jsonl")
    assert f"other.jsonl: reward '{name}' cannot work with 2 of 2 values" in caplog.text
    with pytest.raises(ConfigError, match="cannot work with 2 of 2 values"):
        check_rewards([{"name": name}], rows, "other.jsonl")
