"""Every recipe of configs/experiment/ for real: a tiny model in place of the hub's, a few rows in place of its data,
and steps and responses that two cores can take; everything else as the recipe says."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from rlsys.config.build_schema import ModelBuild, TokenizerBuild
from rlsys.models.tiny import build_model, build_tokenizer, save_model
from tests.integration.runs import read_metrics
from tests.integration.test_run import rlsys

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]
SHORT = ["rollout.kv_cache_gib=0.5", "rollout.max_num_seqs=64", "logging.trackers=[]", "data.eval_limit=8"]
FEW = ["train.prompts_per_step=4", "train.num_steps=2", "eval.every=2", "checkpoint.every=2"]
ONE_ENGINE = "rollout.tensor_parallel_size=1"


def sums(prompt: str, answer: str) -> list[dict[str, Any]]:
    """Rows of a data set with these columns; the answer as the data set has it."""
    return [{prompt: f"What is {n} plus {n + 1}?", "id": n, **_filled(answer, 2 * n + 1)} for n in range(24)]


def _filled(answer: str, value: int) -> dict[str, str]:
    column, _, form = answer.partition("=")
    return {column: (form or "{}").replace("{}", str(value))} if column else {}


RECIPES: dict[str, tuple[list[dict[str, Any]], list[str]]] = {
    "trl_zen": (sums("prompt", ""), ["train.num_steps=3", "eval.every=3", "checkpoint.every=3"]),
    "smoltldr_length_lora": (sums("prompt", "completion"), ["train.num_steps=3", "eval.every=3", "checkpoint.every=3"]),
    "open_r1_math_lora": (sums("problem", "solution=$${}$$"), [*FEW, "rollout.max_response_tokens=64"]),
    "axolotl_r1": (sums("question", "answer=so #### {}"), [*FEW, "rollout.max_response_tokens=64"]),
    "easyr1_math": (
        sums("problem", "answer"),
        [*FEW, "train.minibatches_per_step=2", "rollout.max_response_tokens=64", ONE_ENGINE],
    ),
    "openrlhf_math": (
        sums("prompt", "label"),
        [*FEW, "train.minibatches_per_step=2", "rollout.max_response_tokens=64", "algorithm.groups.max_tries=2"],
    ),
    "dapo_math": (
        sums("prompt", "solution"),
        [
            *FEW,
            "train.minibatches_per_step=2",
            "rollout.max_response_tokens=64",
            "rewards=[{name: math_answer, weight: 2.0}, "
            "{name: soft_overlong_punishment, max_response_tokens: 64, buffer_tokens: 32}]",
            "algorithm.groups.max_tries=3",
            "eval.num_samples=2",
            ONE_ENGINE,
        ],
    ),
    "gsm8k_qwen2.5_1.5b": (sums("question", "answer=so #### {}"), [*FEW, "rollout.max_response_tokens=64"]),
}
COLUMNS = {"dapo_math": "columns: {answer: solution}", "openrlhf_math": "columns: {answer: label}"}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Four layers, a byte-level tokenizer of 600 entries, a context of 2,048 tokens."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    build = ModelBuild(max_context=2048, tokenizer=TokenizerBuild(kind="bpe", vocab_size=600))
    tokenizer = build_tokenizer(build.tokenizer, [row["prompt"] for row in sums("prompt", "")])
    save_model(build_model(build, tokenizer, seed=0), tokenizer, folder)
    return str(folder)


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_runs(tmp_path: Path, tiny: str, name: str) -> None:
    rows, overrides = RECIPES[name]
    data = tmp_path / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = f"{{name: {data}, {COLUMNS[name]}}}" if name in COLUMNS else str(data)
    given = [f"data.train={source}", f"data.eval={source}", f"model.path={tiny}", f"run_dir={tmp_path}/run"]
    result = rlsys("train", f"experiment={name}", *given, *SHORT, *overrides, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    metrics = read_metrics(tmp_path / "run")
    assert all(row["nonfinite/steps"] == 0 for row in metrics[1:])
    assert all(row["reward/masked_trajectories"] < row["rollout/tokens"] for row in metrics[1:])
    assert metrics[-1].get("policy/updates_applied", 0) > 0 or metrics[-1]["groups/zero_variance"] > 0
    assert "eval/accuracy" in metrics[-1]

    exported = rlsys("export", "run", "--output", "out", *(["--merge"] if "lora" in name else []), cwd=tmp_path)
    assert exported.returncode == 0, exported.stdout + exported.stderr
    assert len(_generated(tmp_path / "out")) > 0


def _generated(folder: Path) -> str:
    """What the exported policy says to a prompt of the data."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("What is 1 plus 2?", return_tensors="pt")
    with torch.no_grad():
        out = model.generate(**ids, max_new_tokens=8, do_sample=False)
    text: str = tokenizer.decode(out[0])
    return text
