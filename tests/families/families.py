"""Tiny members of the model families that people train, built on the spot."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlsys.config.build_schema import TokenizerBuild
from rlsys.models.tiny import build_tokenizer, save_model

# Widths that every family below accepts; heads of 32 dimensions are the smallest that vLLM's CPU attention supports.
SHAPE: dict[str, Any] = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 32,
    "max_position_embeddings": 256,
    # Larger than usual: with the default of 0.02 a tiny model's distribution is flat, and wrong layers hardly show.
    "initializer_range": 0.2,
}
ATTENTION = "[q_proj,k_proj,v_proj,o_proj]"
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
# Shorter than the test's sequences, so that it matters.
WINDOW = 16


@dataclass(frozen=True)
class Family:
    """A family: its classes in transformers are `{prefix}Config` and `{prefix}ForCausalLM`."""

    prefix: str
    options: dict[str, Any] = field(default_factory=dict)
    tied: tuple[bool, ...] = (True, False)  # what its published models have
    adapted: str = "all-linear"  # layers with adapters; of a mixture of experts, those of the attention


FAMILIES = {
    "Llama 3": Family(
        "Llama",
        {
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 8.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64,
            }
        },
    ),
    "Qwen2, Qwen2.5": Family("Qwen2"),
    "Qwen3": Family("Qwen3"),
    "Qwen3-MoE": Family("Qwen3Moe", {**EXPERTS, "norm_topk_prob": True}, tied=(False,), adapted=ATTENTION),
    "Mistral": Family("Mistral", tied=(False,)),
    "Mistral, sliding window": Family("Mistral", {"sliding_window": WINDOW}, tied=(False,)),
    "Phi-3": Family("Phi3", tied=(False,)),
    "Gemma 2": Family("Gemma2", {"sliding_window": WINDOW, "query_pre_attn_scalar": 32}, tied=(True,)),
    "Gemma 3 (text)": Family(
        "Gemma3",
        {"sliding_window": WINDOW, "query_pre_attn_scalar": 32, "layer_types": ["sliding_attention", "full_attention"]},
        tied=(True,),
    ),
    "SmolLM3": Family("SmolLM3", {"no_rope_layers": [1, 0]}),
    "OLMo 2": Family("Olmo2", tied=(False,)),
    "GPT-OSS": Family(
        "GptOss",
        {
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "sliding_window": WINDOW,
            "layer_types": ["sliding_attention", "full_attention"],
        },
        tied=(False,),
        adapted=ATTENTION,
    ),
    "Granite": Family(
        "Granite",
        {
            "logits_scaling": 8.0,
            "residual_multiplier": 0.22,
            "embedding_multiplier": 12.0,
            "attention_multiplier": 0.03,
        },
    ),
    "DeepSeek-V3": Family(
        "DeepseekV3",
        {
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "n_routed_experts": 4,
            "num_experts_per_tok": 2,
            "n_group": 2,
            "topk_group": 1,
            "moe_intermediate_size": 64,
            "first_k_dense_replace": 1,
            "n_shared_experts": 1,
            "kv_lora_rank": 512,
            "q_lora_rank": 32,
            "qk_rope_head_dim": 64,
            "qk_nope_head_dim": 32,
            "v_head_dim": 32,
            "head_dim": 64,
            "num_key_value_heads": 2,
        },
        tied=(False,),
        adapted="[q_a_proj,q_b_proj,kv_a_proj_with_mqa,o_proj]",
    ),
}

WAYS = {
    "ZeRO 1": ["learner.zero_stage=1"],
    "ZeRO 3, 2 ranks": ["learner.zero_stage=3", "learner.num_workers=2"],
    "LoRA": ["learner.lora.rank=4", "learner.lora.alpha=8"],
}
VARIANTS = [(name, is_tied) for name, family in FAMILIES.items() for is_tied in family.tied]
# In nats. float32 on both sides agrees to about 1e-5; a wrong layer, head or position gives at least 1e-2.
BOUND = 2e-4


def build(family: Family, folder: Path, *, is_tied: bool, seed: int = 0) -> Path:
    """Write a tiny model of a family with a tokenizer of one token per character."""
    import torch
    import transformers

    tokenizer = build_tokenizer(TokenizerBuild())
    prefix = "Gemma3Text" if family.prefix == "Gemma3" else family.prefix
    config = getattr(transformers, f"{prefix}Config")(
        **{
            **SHAPE,
            "vocab_size": len(tokenizer),
            "tie_word_embeddings": is_tied,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
            **family.options,
        }
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = getattr(transformers, f"{family.prefix}ForCausalLM")(config)
    save_model(model.float(), tokenizer, folder)
    return folder
