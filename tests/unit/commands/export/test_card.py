"""The model card of an export: facts of the run, its evaluations and its curve, no later than the checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from huggingface_hub import ModelCard
from omegaconf import OmegaConf

from rlsys.commands.export.card import MAX_ROWS, write_card
from rlsys.config.compose import load_config
from rlsys.run_folder.folder import RunFolder


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """Thirty steps, every second with an evaluation, and one that stands there twice as after a resume."""
    rows = [{"step": step, "reward/total/mean": step / 30} for step in range(1, 31)]
    for row in rows[1::2]:
        row |= {"eval/accuracy": row["step"] / 100, "eval/reward/mean": 0.5}
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in [rows[3], *rows]))
    (tmp_path / "config.yaml").write_text("{}\n")
    (tmp_path / "export").mkdir()
    return tmp_path


def written(run_dir: Path, step: int, *overrides: str) -> tuple[str, ModelCard]:
    config = load_config(["experiment=quickstart", *overrides])
    write_card(
        run_dir / "export", RunFolder(run_dir), run_dir / "checkpoints" / f"step-{step}", config, is_adapter=False
    )
    text = (run_dir / "export" / "README.md").read_text()
    return text, ModelCard(text)


def test_evaluations_are_rows_of_a_table_up_to_the_checkpoint(run_dir: Path) -> None:
    text, _ = written(run_dir, 6)
    table = text[text.index("| step | accuracy") :].splitlines()[2:5]
    assert table == ["| 2 | 0.020 | 0.5 |", "| 4 | 0.040 | 0.5 |", "| 6 | 0.060 | 0.5 |"]
    assert "| 8 |" not in text
    assert "steps 1 to 6" in (run_dir / "export" / "curve.svg").read_text()


def test_of_many_evaluations_first_and_last_are_kept(run_dir: Path) -> None:
    text, _ = written(run_dir, 30)
    table = text[text.index("| step | accuracy") :].split("\n\n")[0].splitlines()[2:]
    assert len(table) == MAX_ROWS
    assert table[0].startswith("| 2 |")
    assert table[-1].startswith("| 30 |")


def test_a_run_without_evaluations_has_no_table_and_one_of_one_step_no_curve(run_dir: Path) -> None:
    text, _ = written(run_dir, 1)
    assert "Held-out" not in text
    assert "curve.svg" not in text
    assert not (run_dir / "export" / "curve.svg").exists()


def test_the_metadata_are_hugging_faces_and_options_are_the_changed_ones(run_dir: Path) -> None:
    text, card = written(run_dir, 6, "learner.lora.rank=4", "learner.lr=0.002")
    metadata = card.data.to_dict()
    assert metadata["library_name"] == "transformers"
    assert "lora" in metadata["tags"]
    changed = text[text.index("## Options that differ") :]
    assert "lr: 0.002" in changed
    assert "rank: 4" in changed
    assert "max_grad_norm" not in changed
    whole = OmegaConf.load(run_dir / "export" / "rlsys_config.yaml")
    assert (whole.learner.lr, whole.learner.max_grad_norm) == (0.002, 1.0)


def test_a_card_has_neither_folders_of_this_machine_nor_secrets(run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", "hunter2")
    overrides = ["data.train=[/some/where/rows.jsonl,org/maths]", "model.path=/some/where/base", "run_dir=/some/where"]
    overrides += ["rewards=[{name: '/some/where/mine.py:score', token: '${oc.env:PW}'}]"]
    text, card = written(run_dir, 6, *overrides)
    assert "| training data | rows.jsonl, org/maths |" in text
    assert "| base model | base |" in text
    assert "| rewards | mine.py:score (weight 1) |" in text
    assert "token: ${oc.env:PW}" in text
    assert "base_model" not in card.data.to_dict()
    for file in ("README.md", "rlsys_config.yaml"):
        content = (run_dir / "export" / file).read_text()
        assert [word for word in ("/some", "hunter2") if word in content] == []
