"""The critic: a language model with a value head."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn

from rlsys.models.kernels.linear import use_onednn
from rlsys.models.layout import use_layout
from rlsys.models.packing import TokenBatch
from rlsys.models.rope import pin_rope
from rlsys.models.states import decoder_of, prefix_states
from rlsys.models.traits import Traits
from rlsys.models.trial import folder_traits, traits_of


class ValueModel(nn.Module):
    """A decoder and one linear layer whose `forward` returns the value of the state before each target token."""

    def __init__(self, hf: Any, packing: str = "auto", traits: Traits | None = None) -> None:
        super().__init__()
        self.traits = traits_of(hf.eval()) if traits is None else traits
        self.layout = use_layout(hf, packing, self.traits)
        self.decoder = decoder_of(hf)  # without the vocabulary projection, which a critic does not need
        use_onednn(self.decoder)
        # The width of the states that leave the decoder; inside it may be another (OPT-350M).
        self.head = nn.Linear(hf.get_output_embeddings().in_features, 1)
        nn.init.zeros_(self.head.weight)  # every state has value 0 until something is learned
        nn.init.zeros_(self.head.bias)

    def forward(self, batch: TokenBatch) -> torch.Tensor:
        """Compute the values [B, T] float32 of B trajectories in this model's `layout`; 0 outside the loss mask."""
        states = prefix_states(self.decoder, batch)  # [n, H]
        return batch.spread(self.head(states.to(self.head.weight.dtype)).squeeze(-1).float())


def load_critic(
    path: str,
    dtype: torch.dtype,
    *,
    max_tokens: int,
    packing: str = "auto",
    trust_remote_code: bool = False,
    loading: AbstractContextManager[None] | None = None,
) -> ValueModel:
    """Load the decoder of a causal model in `dtype`, in eval mode, with a fresh value head.

    The arguments are those of `load_policy`.
    """
    from transformers import AutoModelForCausalLM

    traits = folder_traits(path, trust_remote_code=trust_remote_code)
    with nullcontext() if loading is None or traits is None else loading:
        hf = AutoModelForCausalLM.from_pretrained(path, dtype=dtype, trust_remote_code=trust_remote_code)
        pin_rope(hf, max_tokens)
    model = ValueModel(hf, packing, traits)
    model.head.to(dtype)  # the head alone: rotary embeddings must keep their frequencies in float32
    return model.eval()
