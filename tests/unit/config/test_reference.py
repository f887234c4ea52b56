"""docs/configuration.md is generated from the schema and the presets."""

from __future__ import annotations

from pathlib import Path

from rlsys.config.option import options
from rlsys.config.overrides import groups, presets
from rlsys.config.reference import reference
from rlsys.config.schema import Config

PAGE = Path(__file__).parents[3] / "docs" / "configuration.md"


def test_the_committed_page_is_current() -> None:
    command = "python -m rlsys.config.reference > docs/configuration.md"
    assert PAGE.read_text(encoding="utf-8") == reference(), f"write it again: {command}"


def test_every_option_and_every_preset_is_in_it_once() -> None:
    lines = reference().splitlines()
    for option in options(Config()):
        (row,) = [line for line in lines if line.startswith(f"| `{option.key}` |")]
        assert option.rule.help.replace("|", "\\|") in row
    for group in groups():
        for name in presets(group):
            assert sum(line.startswith(f"**{group}={name}**") for line in lines) == 1
    assert "| `eval.confidence` | `float` | `0.95` | > 0, <= 0.9999 |" in reference()
    assert "| `scoring.on_error` | `str` | `mask` | `mask`, `drop_group`, `raise` |" in reference()
    assert "divided by the rank (needs `learner.lora.rank > 0`) |" in reference()
    assert "\nNeeds `algorithm.kl.coef > 0` and `learner.lora.rank = 0`.\n" in reference()
