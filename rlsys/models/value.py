"""A language model with a value head: the critic."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlsys.models.linear import use_onednn
from rlsys.models.prefix import prefix_states


class ValueModel(nn.Module):
    """A decoder and one linear layer on its states; `forward` gives the value of the state before each masked token."""

    def __init__(self, decoder: Any, hidden_size: int) -> None:
        super().__init__()
        use_onednn(decoder)
        self.decoder = decoder
        self.head = nn.Linear(hidden_size, 1)
        nn.init.zeros_(self.head.weight)  # every state is worth 0 until something has been learned
        nn.init.zeros_(self.head.bias)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """[B, T] int64, int64, bool to values [B, T] float32, 0 outside the mask; column 0 must not be in it."""
        states, where = prefix_states(self.decoder, input_ids, attention_mask, mask)
        values = self.head(states.to(self.head.weight.dtype)).squeeze(-1).float()
        return values.new_zeros(input_ids.shape).index_put(where, values)


def load_critic(path: str, dtype: torch.dtype, *, trust_remote_code: bool = False) -> ValueModel:
    """The decoder of a causal model from a folder or hub id in `dtype`, in eval mode, with a fresh value head."""
    from transformers import AutoModelForCausalLM

    hf = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code)
    model = ValueModel(hf.get_decoder(), hf.config.get_text_config().hidden_size)
    model.head.to(dtype)  # not the whole: rotary embeddings keep their frequencies in float32
    return model.eval()
