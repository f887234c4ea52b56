"""The header of a report."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rlsys.commands.report.facts import config_lines, facts, figures
from rlsys.config.compose import load_config
from rlsys.run_folder.folder import RunFolder
from tests.run_folder import Recipe, write_run
from tests.unit.commands.report.conftest import RunOf


def test_facts_and_figures(tmp_path: Path, run_of: RunOf) -> None:
    run = RunFolder(write_run(tmp_path / "run", Recipe(num_steps=5)))
    found = dict(facts(run))
    assert found["Model"] == "Qwen/Qwen2.5-0.5B"
    assert found["Algorithm"] == "grpo advantages; ppo_clip (clip_high 0.28) loss; token_mean over tokens"
    assert found["Corrections"] == "truncate (high 2.0)"
    assert found["Rewards"] == "math_answer (weight 1.0), format (weight 0.2)"
    assert found["KL"] == "0.04 × k3 in the loss"
    assert found["Batch"] == "4 prompts × 4 responses"
    shown = {label: (value, detail) for label, value, detail in figures(run)}
    assert shown["Steps"] == ("5", "of 5")
    assert shown["Held-out accuracy"] == ("0.700", "at step 5; best 0.700 at step 5")
    assert [label for label, _ in facts(run_of([{"step": 0}]))] == ["Folder"]
    assert figures(run_of([{"step": 0}])) == [("Steps", "0", "")]


def test_workers_are_those_that_the_run_has(tmp_path: Path, tokenizer: Any) -> None:
    """A policy with an adapter is its own reference: there is no worker for it."""
    for rank, expected in ((0, ", reference 1"), (16, "")):
        config = load_config(["algorithm.kl.coef=0.04", f"learner.lora.rank={rank}"])
        run = RunFolder.create(tmp_path / f"rank-{rank}", config, tokenizer)
        (run.path / "metrics.jsonl").write_text('{"step": 0}\n')
        assert dict(facts(run))["Workers"] == f"rollout 1, scoring 1, learner 1{expected}"


def test_a_configuration_is_flattened() -> None:
    config = {"a": {"b": 1, "c": {}}, "d": [{"name": "x"}], "e": None, "f": "text"}
    assert config_lines(config) == {"a.b": "1", "a.c": "{}", "d": "- name: x", "e": "null", "f": "text"}
