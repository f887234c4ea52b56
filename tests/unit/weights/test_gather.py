"""A policy that was saved is, for transformers, the policy that was trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedConfig

from rlsys.config.build_schema import ModelBuild
from rlsys.config.learner_schema import LoraConfig
from rlsys.models.folder import write_model
from rlsys.models.policy import load_policy
from rlsys.models.tiny import build_model, save_model
from rlsys.weights.gather import full_state
from tests.unit.conftest import TINY

SHAPE = {"vocab_size": 101, "hidden_size": 64, "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 32}
# Architectures whose files hold more than parameters: corrections of a router, a scale per layer.
WITH_BUFFERS = {
    "glm4_moe": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2, "first_k_dense_replace": 1},
    "lfm2_moe": {"num_experts": 4, "num_experts_per_tok": 2, "num_dense_layers": 1, "use_expert_bias": True},
    "gemma4_text": {"hidden_size_per_layer_input": 0, "num_kv_shared_layers": 0, "global_head_dim": 32},
}


def make(kind: str) -> Any:
    extra = {"intermediate_size": 96, "moe_intermediate_size": 32, "pad_token_id": 0}
    layers = {"num_hidden_layers": 2, "max_position_embeddings": 64}
    if kind == "lfm2_moe":
        layers["layer_types"] = ["full_attention", "conv"]
    config: PreTrainedConfig = CONFIG_MAPPING[kind](**SHAPE, **extra, **layers, **WITH_BUFFERS[kind])
    torch.manual_seed(0)
    hf = AutoModelForCausalLM.from_config(config)
    for name, buffer in hf.state_dict().items():
        if name not in dict(hf.named_parameters()):
            buffer += torch.rand(buffer.shape)
    return hf.eval()


def scores(hf: Any) -> torch.Tensor:
    with torch.no_grad():
        return hf(torch.arange(5, 25)[None]).logits.log_softmax(-1)


@pytest.mark.parametrize("kind", WITH_BUFFERS)
def test_buffers_that_belong_to_the_model_are_saved(kind: str, tmp_path: Path) -> None:
    hf = make(kind)
    hf.save_pretrained(tmp_path / "base")
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32).eval()
    write_model(tmp_path / "out", trained, full_state(trained, 0, torch.float32), torch.float32, [])
    given, written = (load_file(tmp_path / folder / "model.safetensors") for folder in ("base", "out"))
    assert given.keys() == written.keys()
    assert all(torch.equal(given[name], written[name]) for name in given)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", dtype=torch.float32).eval()
    assert torch.equal(scores(again), scores(hf))


def test_weights_are_rounded_once_and_the_config_says_so(tokenizer: Any, tmp_path: Path) -> None:
    hf = build_model(ModelBuild(**TINY), tokenizer, seed=0)
    weight = hf.get_input_embeddings().weight
    write_model(tmp_path, hf, full_state(hf, 0, torch.bfloat16), torch.bfloat16, [])
    written = load_file(tmp_path / "model.safetensors")
    assert {tensor.dtype for tensor in written.values()} == {torch.bfloat16}
    assert torch.equal(written["model.embed_tokens.weight"], weight.detach().bfloat16())
    assert AutoModelForCausalLM.from_pretrained(tmp_path).dtype == torch.bfloat16
    assert weight.dtype == torch.float32
    assert hf.config.dtype != torch.bfloat16


def test_what_an_architecture_keeps_in_float32_stays_so(tmp_path: Path) -> None:
    hf = make("glm4_moe")
    state = full_state(hf, 0, torch.bfloat16)
    corrections = [tensor.dtype for name, tensor in state.items() if name.endswith("e_score_correction_bias")]
    assert corrections == [torch.float32]
    assert state["lm_head.weight"].dtype == torch.bfloat16


def test_whole_modules_beside_an_adapter_are_saved_under_their_plain_names(tokenizer: Any, tmp_path: Path) -> None:
    build = ModelBuild(**TINY, tie_word_embeddings=False)
    save_model(build_model(build, tokenizer, seed=0), tokenizer, tmp_path)
    lora = LoraConfig(rank=2, modules_to_save=["lm_head"])
    policy = load_policy(str(tmp_path), torch.float32, max_tokens=64, lora=lora)
    state = full_state(policy.hf, 0, torch.float32)
    assert state.keys() == load_file(tmp_path / "model.safetensors").keys()
    assert full_state(policy.hf, 1, torch.float32) == {}
