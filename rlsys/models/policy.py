"""A causal language model that returns token log-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlsys.models.head import use_token_head
from rlsys.models.layout import prefix_states, use_layout
from rlsys.models.linear import use_onednn
from rlsys.models.packing import TokenBatch

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PolicyModel(nn.Module):
    """Wraps a Hugging Face causal model; `forward` gives each masked token's log-probability under its prefix.

    Only the positions that are asked for go through the vocabulary projection: with long prompts and short responses
    that is most of the work and of the memory saved.
    """

    def __init__(self, hf: Any, packing: str = "auto") -> None:
        super().__init__()
        self.layout = use_layout(hf, packing)
        use_onednn(hf)
        use_token_head(hf)
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
    path: str, dtype: torch.dtype, *, packing: str = "auto", trust_remote_code: bool = False
) -> PolicyModel:
    """Load a causal model from a folder or hub id in `dtype`, in eval mode (no dropout: ratios must be exact)."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code)
    return PolicyModel(hf, packing).eval()
