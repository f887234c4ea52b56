"""A causal language model that returns token log-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlsys.config.schema import LoraConfig
from rlsys.models.adapters import add_adapters
from rlsys.models.kernels.head import use_token_head
from rlsys.models.kernels.linear import use_onednn
from rlsys.models.layout import prefix_states, use_layout
from rlsys.models.packing import TokenBatch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PolicyModel(nn.Module):
    """Wraps a Hugging Face causal model; `forward` gives each masked token's log-probability under its prefix.

    Only the positions that are asked for go through the vocabulary projection: with long prompts and short responses
    that is most of the work and of the memory saved.
    """

    def __init__(self, hf: Any, packing: str = "auto", lora: LoraConfig | None = None) -> None:
        super().__init__()
        self.layout = use_layout(hf, packing)
        use_token_head(hf)
        if lora is not None and lora.rank > 0:
            add_adapters(hf, lora)
        use_onednn(hf)
        self.hf = hf

    def forward(
        self, batch: TokenBatch, temperature: float, entropy_gradient: bool = False
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy of the sampling distribution `softmax(logits / temperature)`.

        Args:
            batch: B trajectories in this model's `layout`.
            temperature: positive.
            entropy_gradient: whether the entropy carries a gradient; it costs a second pass over the logits.

        Returns: logprobs [B, T] float32 (with gradient) and entropy [B, T] float32; 0 outside the batch's loss mask.
        """
        states = prefix_states(self.hf.get_decoder(), batch)
        logprobs, entropy = self.hf.get_output_embeddings()(states, batch.targets, temperature, entropy_gradient)
        return batch.spread(logprobs), batch.spread(entropy)


def load_policy(
    path: str,
    dtype: torch.dtype,
    *,
    packing: str = "auto",
    lora: LoraConfig | None = None,
    trust_remote_code: bool = False,
) -> PolicyModel:
    """Load a causal model from a folder or hub id in `dtype`, in eval mode (no dropout: ratios must be exact)."""
    from transformers import AutoModelForCausalLM

    extra = {} if lora is None or lora.quantize_base is None else {"quantization_config": _quantization(lora, dtype)}
    hf = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code, **extra)
    return PolicyModel(hf, packing, lora).eval()


def _quantization(lora: LoraConfig, dtype: torch.dtype) -> Any:
    """The frozen weights in 4 bits as the engines have them, products in `dtype` (QLoRA, arXiv:2305.14314)."""
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type=lora.quantize_base,
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
