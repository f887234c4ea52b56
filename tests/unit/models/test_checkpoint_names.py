"""Names and values of a broadcast are those that `save_pretrained` writes, one parameter at a time."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import nn

from rlsys.errors import ConfigError
from rlsys.models.checkpoint_names import checkpoint_parameters
from rlsys.models.parameters import exported_parameters

COMMON: dict[str, Any] = {
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "pad_token_id": 0,
}
EXPERTS = {"num_experts_per_tok": 2, "moe_intermediate_size": 8}
DEEPSEEK = {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_rope_head_dim": 8, "qk_nope_head_dim": 8, "v_head_dim": 8}
GROUPS = {"n_routed_experts": 4, "n_group": 1, "topk_group": 1, "first_k_dense_replace": 1, "n_shared_experts": 1}
MODELS: dict[str, dict[str, Any]] = {
    "Qwen2": {"tie_word_embeddings": True},
    "Llama": {"tie_word_embeddings": False},
    "Mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "Qwen2Moe": {"num_experts": 4, "shared_expert_intermediate_size": 8, **EXPERTS},
    "Qwen3Moe": {"num_experts": 4, "head_dim": 8, **EXPERTS},
    "DeepseekV3": {**DEEPSEEK, **GROUPS, **EXPERTS},
    "Glm4Moe": {**GROUPS, **EXPERTS, "head_dim": 8},
    "Olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "GptOss": {"num_local_experts": 4, "num_experts_per_tok": 2, "head_dim": 8},
}
SAID = {
    "Mixtral": "model.layers.1.block_sparse_moe.experts.3.w2.weight",
    "DeepseekV3": "model.layers.1.mlp.experts.3.gate_proj.weight",
    "Qwen3Moe": "model.layers.1.mlp.experts.3.up_proj.weight",
    "GptOss": "model.layers.1.mlp.experts.gate_up_proj",
}


def built(name: str, folder: Path) -> Any:
    """A model loaded from a checkpoint, and so with transformers' memory of how it was stored."""
    config = getattr(transformers, f"{name}Config")(**COMMON | MODELS[name])
    made = getattr(transformers, f"{name}ForCausalLM")(config)
    made.save_pretrained(folder)
    return transformers.AutoModelForCausalLM.from_pretrained(folder)


@pytest.mark.parametrize("name", MODELS)
def test_parameters_are_named_as_their_checkpoint_names_them(name: str, tmp_path: Path) -> None:
    hf = built(name, tmp_path)
    found = checkpoint_parameters(hf)
    stored = load_file(tmp_path / "model.safetensors")
    buffers = {key for key, _ in hf.named_buffers()}  # they do not change in training, and are not sent
    assert {n for parameter in found for n in parameter.shapes} == set(stored) - buffers
    assert SAID.get(name, "model.norm.weight") in stored
    for parameter in found:
        values = parameter.read()
        assert {n: tuple(value.shape) for n, value in values.items()} == parameter.shapes
        assert all(torch.equal(value, stored[n]) for n, value in values.items())
    # Each is made of one parameter, so that gathering never holds more.
    assert [len(parameter.sources) for parameter in found] == [1] * len(exported_parameters(hf))


def test_values_are_those_of_the_moment_that_they_are_read(tmp_path: Path) -> None:
    hf = built("Mixtral", tmp_path)
    found = checkpoint_parameters(hf)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.fill_(3.0)
    assert all(bool((value == 3.0).all()) for parameter in found for value in parameter.read().values())


def test_a_module_that_transformers_does_not_know_keeps_its_names() -> None:
    (weight, bias) = checkpoint_parameters(nn.Linear(2, 3))
    assert (weight.shapes, bias.shapes) == ({"weight": (3, 2)}, {"bias": (3,)})


def test_parts_that_are_stored_as_one_tensor_are_read_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As a checkpoint with a stacked q, k and v, of a model that has three layers for them."""
    from transformers.core_model_loading import Chunk, WeightConverter

    hf = built("Llama", tmp_path)
    parts = [f".self_attn.{part}_proj.weight" for part in "qkv"]
    stacked = WeightConverter(".self_attn.qkv_proj.weight", parts, operations=[Chunk(dim=0)])
    monkeypatch.setattr(hf, "_weight_conversions", [stacked], raising=False)
    (first, second) = [p for p in checkpoint_parameters(hf) if len(p.sources) == 3]
    assert first.shapes == {"model.layers.0.self_attn.qkv_proj.weight": (48, 16)}
    attention = hf.model.layers[1].self_attn
    expected = torch.cat([attention.q_proj.weight, attention.k_proj.weight, attention.v_proj.weight])
    assert torch.equal(second.read()["model.layers.1.self_attn.qkv_proj.weight"], expected)


def test_a_tensor_of_several_layers_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from transformers.core_model_loading import Chunk, WeightConverter

    hf = built("Llama", tmp_path)
    norms = ["model.layers.0.input_layernorm.weight", "model.layers.1.input_layernorm.weight"]
    stacked = WeightConverter("model.norms.weight", norms, operations=[Chunk(dim=0)])
    monkeypatch.setattr(hf, "_weight_conversions", [stacked], raising=False)
    with pytest.raises(ConfigError, match="LlamaForCausalLM: transformers stores parameters of several layers"):
        checkpoint_parameters(hf)
