"""A causal language model that returns token log-probabilities."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlsys.models.head import use_token_head
from rlsys.models.linear import use_onednn
from rlsys.models.prefix import prefix_states

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PolicyModel(nn.Module):
    """Wraps a Hugging Face causal model; `forward` gives each masked token's log-probability under its prefix.

    Only the positions that are asked for go through the vocabulary projection: with long prompts and short responses
    that is most of the work and of the memory saved.
    """

    def __init__(self, hf: Any) -> None:
        super().__init__()
        use_onednn(hf)
        use_token_head(hf)
        self.hf = hf

    def forward(
        self,
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor,
        mask: torch.Tensor,
        temperature: float,
        entropy_gradient: bool = False,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy of the sampling distribution `softmax(logits / temperature)`.

        Args:
            input_ids: [B, T] int64, right-padded.
            attention_mask: [B, T] int64, 1 for real tokens.
            mask: [B, T] bool, the tokens asked for; column 0 has no prefix and must be False.
            temperature: positive.
            entropy_gradient: whether the entropy carries a gradient; it costs a second pass over the logits.

        Returns: logprobs [B, T] float32 (with gradient) and entropy [B, T] float32; 0 outside the mask.
        """
        states, where = prefix_states(self.hf.get_decoder(), input_ids, attention_mask, mask)
        head = self.hf.get_output_embeddings()
        logprobs, entropy = head(states, input_ids[where], temperature, entropy_gradient)
        zeros = logprobs.new_zeros(input_ids.shape)
        return zeros.index_put(where, logprobs), zeros.index_put(where, entropy)


def load_policy(path: str, dtype: torch.dtype, *, trust_remote_code: bool = False) -> PolicyModel:
    """Load a causal model from a folder or hub id in `dtype`, in eval mode (no dropout: ratios must be exact)."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code)
    return PolicyModel(hf).eval()
