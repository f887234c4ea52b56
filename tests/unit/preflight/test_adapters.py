"""Checks of low-rank adapters before Ray starts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rlsys.config.compose import load_config
from rlsys.errors import ConfigError
from rlsys.preflight.adapters import check_quantized_model
from rlsys.preflight.checks import check_config

LORA = "learner.lora.rank=8"


TARGETS = [("5", "5"), ("null", "None"), ("[]", "[]"), ("[q_proj,3]", "['q_proj', 3]"), ("true", "True")]


@pytest.mark.parametrize(
    ("quantized", "overrides", "said"),
    [
        ({"quant_method": "fp8"}, [], "stored quantised (config.json has a quantization_config of fp8)"),
        ({"quant_method": "gptq", "bits": 4}, [LORA], "quantization_config of gptq"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, [], "quantization_config of bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_4bit": True}, [LORA], "(4-bit weights) needs GPUs and bitsandbytes"),
    ],
)
def test_a_model_stored_quantised_is_refused(
    model_folder: Path, tmp_path: Path, quantized: dict[str, Any], overrides: list[str], said: str
) -> None:
    content = json.loads((model_folder / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(content | {"quantization_config": quantized}))
    with pytest.raises(ConfigError) as caught:
        check_quantized_model(load_config(overrides), str(tmp_path))
    assert said in str(caught.value)
    check_quantized_model(load_config(overrides), str(model_folder))


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        ([LORA, "learner.lora.dropout=1.0"], "learner.lora.dropout=1.0"),
        (
            [LORA, "algorithm.refresh.every=2", "algorithm.kl.coef=0.1"],
            "the reference is the policy without its adapter",
        ),
        (["learner.lora.rank=1024"], "at most rank 512"),
        (["learner.lora.rank=-1"], "learner.lora.rank=-1: must be at least 0"),
        (
            [LORA, "learner.lora.quantize_base=nf4", "learner.zero_stage=3"],
            "quantize_base=nf4 works with learner.zero_stage 0 to 2",
        ),
        ([LORA, "learner.lora.quantize_base=int8"], "learner.lora.quantize_base=int8"),
        ([LORA, "cluster.num_gpus=4", "learner.dtype=float32"], "half precision only, and theirs is float32"),
        (["algorithm=ppo", "critic.lora.rank=8"], "a critic has no adapters"),
        (["scoring.num_gpus=0.5"], "cluster.num_gpus=0"),
        *(
            ([LORA, f"learner.lora.target_modules={value}"], f"={shown}: must be all-linear")
            for value, shown in TARGETS
        ),
    ],
)
def test_refused(overrides: list[str], said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        check_config(load_config(overrides))
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "overrides",
    [
        [LORA, "algorithm.kl.coef=0.1"],
        [LORA, "learner.lora.use_dora=true", "cluster.num_gpus=4"],  # merged weights travel: no adapter kernel
        [LORA, "learner.dtype=bfloat16", "cluster.num_gpus=4"],
    ],
)
def test_taken(overrides: list[str]) -> None:
    check_config(load_config(overrides))


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    given = {"r": 8, "lora_alpha": 16, "use_rslora": False, "base_model_name_or_path": "base"}
    (tmp_path / "adapter_config.json").write_text(json.dumps(given))
    return tmp_path


def check(adapter: Path, *overrides: str, training: bool = True, **changed: Any) -> None:
    given = json.loads((adapter / "adapter_config.json").read_text())
    (adapter / "adapter_config.json").write_text(json.dumps({**given, **changed}))
    check_config(load_config([f"model.adapter={adapter}", *overrides]), training=training)


def test_an_adapter_to_start_from_must_be_the_one_that_is_described(adapter: Path) -> None:
    check(adapter, LORA, "learner.lora.alpha=16")
    for overrides, said in [
        ([LORA], "was trained with alpha=16, but learner.lora.alpha is 32.0"),
        (["learner.lora.rank=4", "learner.lora.alpha=16"], "was trained with rank=8, but learner.lora.rank is 4"),
        ([LORA, "learner.lora.alpha=16", "learner.lora.use_rslora=true"], "use_rslora=False"),
        ([], "was trained with rank=8, but learner.lora.rank is 0"),
    ]:
        with pytest.raises(ConfigError, match=said):
            check(adapter, *overrides)
    with pytest.raises(ConfigError, match="is not a peft folder"):
        check_config(load_config([LORA, "model.adapter=/no/such/folder"]))


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"alpha_pattern": {"q_proj": 64}}, "has alpha_pattern, layers with a scale or rank of their own"),
        ({"rank_pattern": {"q_proj": 4}, "alpha_pattern": {"q_proj": 64}}, "has alpha_pattern and rank_pattern"),
        ({"init_lora_weights": "pissa_niter_4"}, "init_lora_weights=pissa_niter_4, which changes the model under it"),
    ],
)
def test_an_adapter_that_is_more_than_its_matrices(adapter: Path, changed: dict[str, Any], said: str) -> None:
    plain = {"alpha_pattern": {}, "rank_pattern": {}, "init_lora_weights": True}
    check(adapter, LORA, "learner.lora.alpha=16", **plain)
    with pytest.raises(ConfigError, match=said):
        check(adapter, LORA, "learner.lora.alpha=16", **changed)


def test_what_vllm_does_not_serve_is_refused_before_an_evaluation(adapter: Path) -> None:
    check(adapter, LORA, training=False)  # its own scale is in its own description
    with pytest.raises(ConfigError, match="DoRA or whole modules"):
        check(adapter, LORA, training=False, use_dora=True)
