"""Which layout a model can be trained in: packed needs attention that follows the segments, in every layer."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rlsys.errors import ConfigError
from rlsys.models.kernels import attention
from rlsys.models.packing import LAYOUTS, TokenBatch, TokenRow, token_batch


def use_layout(hf: Any, wanted: str) -> str:
    """Prepare a transformers causal model for `wanted` in place; returns the layout to use.

    `auto` is shared_prompt where the model allows it, otherwise padded. Raises ConfigError for a packed layout that was
    asked for by name and is not possible.
    """
    if wanted == "padded":
        return wanted
    before = hf.config._attn_implementation
    attention.register()
    obstacle = _obstacle(hf)
    if obstacle is None:
        return LAYOUTS[0] if wanted == "auto" else wanted
    hf.set_attn_implementation(before)
    if wanted == "auto":
        return "padded"
    raise ConfigError(f"packing={wanted} is not possible with {type(hf).__name__}: {obstacle}; use auto or padded")


def _obstacle(hf: Any) -> str | None:
    """Why packed rows would not be computed right; None, and the attention switched, when they are.

    A trial says more than a list of architectures: what one stretch holds must not be seen by the next.
    """
    try:
        hf.set_attn_implementation(attention.NAME)
        states = [_states(hf, first) for first in ([1, 2, 3], [3, 1, 1])]
    except Exception as error:  # a model of any make may refuse in any way: the answer is no, with its reason
        return f"{type(error).__name__}: {error}"
    if not torch.equal(states[0][3:], states[1][3:]):
        return "a layer other than attention carries state from one trajectory into the next"
    return None


@torch.no_grad()
def _states(hf: Any, first: list[int]) -> torch.Tensor:
    """States [T, H] of two stretches, the second always alike."""
    rows = [
        TokenRow(np.array(ids), np.array([False, True, True]), group) for group, ids in enumerate([first, [1, 3, 2]])
    ]
    return decoder_states(hf.get_decoder(), token_batch(rows, "packed").to(hf.device))


def decoder_states(decoder: Any, batch: TokenBatch) -> torch.Tensor:
    """The decoder's states at every place of the input, flattened: [places, H]."""
    extra = {} if batch.segments is None else {"segments": batch.segments}
    hidden = decoder(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        **extra,
    )[0]
    return hidden.flatten(0, 1)


def prefix_states(decoder: Any, batch: TokenBatch) -> torch.Tensor:
    """The decoder's state before each token that is asked for, [n, H]: the only place that shifts by one."""
    return decoder_states(decoder, batch)[batch.prefixes]
