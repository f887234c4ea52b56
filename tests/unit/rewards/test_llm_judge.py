"""The judge's instruction shows it what to grade."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsys.errors import ConfigError
from rlsys.preflight.rewards import check_options


def check(instruction: str) -> None:
    check_options({"name": "llm_judge", "url": "http://a/v1", "model": "m", "instruction": instruction})


@pytest.mark.parametrize(
    ("instruction", "said"),
    [
        ("Grade {completion} please.", "does not use `completion`"),
        ("Grade\nthis.", "does not use `completion`"),
        ("Grade this.", "no such file"),
        ("{{ completion }", "line 1: not a jinja template"),
        ("{{ completion | summary }}", "line 1: not a jinja template: No filter named 'summary'"),
    ],
)
def test_an_instruction_that_does_not_show_the_completion_is_refused(instruction: str, said: str) -> None:
    with pytest.raises(ConfigError, match=f"reward 'llm_judge', instruction.*{said}"):
        check(instruction)


def test_an_instruction_with_columns_or_in_a_file_is_taken(tmp_path: Path) -> None:
    (tmp_path / "judge.prompt").write_text("{{ prompt }} {{ completion }}")
    check("{{ question }} {{ completion }} {{ answer.text }}")
    check(str(tmp_path / "judge.prompt"))
    check("Grade {{ completion.split('</think>')[1] }}")
    check("Grade {% if '####' in completion %}{{ completion.partition('####')[2] }}{% else %}nothing{% endif %}")
