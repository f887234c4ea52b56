"""A causal language model that returns token log-probabilities: the only place that shifts by one."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlsys.models.linear import use_onednn

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


class PolicyModel(nn.Module):
    """Wraps a Hugging Face causal model; `forward` gives each masked token's log-probability under its prefix.

    Only the positions that are asked for go through the vocabulary projection: with long prompts and short responses
    that is most of the work and of the memory saved.
    """

    def __init__(self, hf: Any) -> None:
        super().__init__()
        use_onednn(hf)
        self.hf = hf

    def forward(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, mask: torch.Tensor, temperature: float
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probability and entropy of the sampling distribution `softmax(logits / temperature)`.

        Args:
            input_ids: [B, T] int64, right-padded.
            attention_mask: [B, T] int64, 1 for real tokens.
            mask: [B, T] bool, the tokens asked for; column 0 has no prefix and must be False.
            temperature: positive.

        Returns: logprobs [B, T] float32 (with gradient) and entropy [B, T] float32 (without); 0 outside the mask.
        """
        hidden = self.hf.get_decoder()(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
        rows, columns = mask.nonzero(as_tuple=True)
        logits = self.hf.get_output_embeddings()(hidden[rows, columns - 1]).float() / temperature
        log_z = torch.logsumexp(logits, dim=-1)
        picked = logits.gather(-1, input_ids[rows, columns].unsqueeze(-1)).squeeze(-1) - log_z
        with torch.no_grad():
            entropy_picked = log_z - (torch.softmax(logits, dim=-1) * logits).sum(-1)
        zeros = picked.new_zeros(input_ids.shape)
        return zeros.index_put((rows, columns), picked), zeros.index_put((rows, columns), entropy_picked)


def load_policy(path: str, dtype: torch.dtype, *, trust_remote_code: bool = False) -> PolicyModel:
    """Load a causal model from a folder or hub id in `dtype`, in eval mode (no dropout: ratios must be exact)."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code)
    return PolicyModel(hf).eval()
