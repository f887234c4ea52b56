"""The estimate of a step's seconds, with a speed given by hand."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlsys.build import step_time
from rlsys.build.step_time import LAYER_S, PRODUCTS_SHARE, estimate_step, measure_speed
from rlsys.config.compose import load_config
from rlsys.preflight.prepare import prepare
from rlsys.preflight.prepared import Prepared


def prepared(model: Path, tmp_path: Path, *overrides: str) -> Prepared:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "3+1=", "answer": "4"}) + "\n")
    sizes = ["rollout.max_response_tokens=8", "train.prompts_per_step=2", "train.samples_per_prompt=4"]
    return prepare(load_config([f"model.path={model}", f"data.train={data}", "data.eval=null", *sizes, *overrides]))


def test_by_hand(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each layer has two products of 64 x 64, two of 64 x 32 and three of 64 x 96; the output layer is tied."""
    monkeypatch.setattr(step_time, "measure_speed", lambda *_, **__: 1e9)
    found = estimate_step(prepared(model_folder, tmp_path))
    layer = 2 * 64 * 64 + 2 * 64 * 32 + 3 * 64 * 96
    vocabulary = json.loads((model_folder / "config.json").read_text())["vocab_size"]
    per_token, rate = 2 * (2 * layer + 64 * vocabulary), PRODUCTS_SHARE * 1e9
    trained = 2 * (4 + 4 * 8)
    assert found.reference_s == pytest.approx(per_token * trained / rate, rel=0.02)
    assert found.update_s == pytest.approx(3 * found.reference_s)
    decoding = 8 * (per_token * 8 / rate + 2 * LAYER_S)  # eight iterations of eight sequences
    assert found.rollout_s == pytest.approx(decoding + per_token * 2 * 4 / rate, rel=0.02)
    assert found.total_s == found.rollout_s + found.reference_s + found.update_s


def test_more_work_takes_longer(model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(step_time, "measure_speed", lambda *_, **__: 1e9)
    one = estimate_step(prepared(model_folder, tmp_path))
    two = estimate_step(prepared(model_folder, tmp_path, "train.updates_per_step=2", "algorithm.kl.coef=0"))
    assert two.update_s == pytest.approx(one.update_s * 7 / 3)  # and the log-probabilities before the first
    assert two.reference_s == 0
    few = estimate_step(prepared(model_folder, tmp_path, "rollout.max_num_seqs=4"))
    assert few.rollout_s > one.rollout_s


def test_a_speed_is_measured() -> None:
    assert measure_speed(64, 32, 32, dtype="float32") > 1e6
