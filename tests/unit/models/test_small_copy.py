"""Small copies of architectures: what shrinks, what stays, and what cannot be copied."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from rlsys.models.small_copy import WINDOW, small_config, small_copy


def test_widths_shrink_by_one_factor_and_numbers_per_head_stay() -> None:
    config = AutoConfig.for_model("qwen2", hidden_size=3584, num_attention_heads=28, num_key_value_heads=4)
    before = config.to_dict()
    small = small_config(config)
    assert (small.hidden_size, small.num_attention_heads, small.num_key_value_heads) == (896, 7, 1)
    assert (small.num_hidden_layers, len(small.layer_types), small.vocab_size) == (8, 8, 64)
    assert small.max_position_embeddings == config.max_position_embeddings
    assert config.to_dict() == before


def test_every_kind_of_layer_is_kept() -> None:
    kinds = ["sliding_attention"] * 11 + ["full_attention"]
    config = AutoConfig.for_model("gemma3_text", num_hidden_layers=24, layer_types=kinds * 2, sliding_window=4096)
    small = small_config(config)
    assert small.layer_types == kinds
    assert small.sliding_window == WINDOW


def test_widths_of_single_layers_shrink_too() -> None:
    small = small_config(AutoConfig.for_model("gemma3n_text", layer_types=["full_attention"] * 35))
    assert max(small.intermediate_size) == 16
    assert len(small.intermediate_size) == small.num_hidden_layers


def test_a_copy_that_would_not_be_small_is_not_built() -> None:
    def make(_: PreTrainedConfig) -> torch.nn.Module:
        return torch.nn.Linear(2**15, 2**15, bias=False)  # on the meta device: no memory

    with pytest.raises(ValueError, match="its small copy would have 1,073,741,824 parameters"):
        small_copy(AutoConfig.for_model("qwen2"), make)


def test_weights_are_as_large_as_trained_ones() -> None:
    hf = small_copy(AutoConfig.for_model("qwen2"), AutoModelForCausalLM.from_config)
    with torch.no_grad():
        logits = hf(torch.arange(1, 9)[None]).logits
    assert 0.5 < logits.std() < 5.0  # a fresh model's are 0.02 times the root of its width
