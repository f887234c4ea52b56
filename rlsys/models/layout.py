"""The layout that a model can be trained in, and the states that it computes for a batch in that layout.

Packed layouts need attention that follows the segments in every layer, and no other layer that looks at neighbours.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch

from rlsys.errors import ConfigError
from rlsys.models.kernels import attention
from rlsys.models.packing import LAYOUTS, TokenBatch, TokenRow, token_batch


def use_layout(hf: Any, wanted: str) -> str:
    """Prepare a transformers causal model for the layout `wanted` in place; return the layout to use.

    `auto` is shared_prompt where the model allows it, otherwise padded.

    Raises:
        ConfigError: a packed layout is asked for by name and the model cannot be computed in it.
    """
    if wanted == "padded":
        return wanted
    before = hf.config._attn_implementation  # restored when the trial fails
    attention.register()
    obstacle = _obstacle(hf)
    if obstacle is None:
        return LAYOUTS[0] if wanted == "auto" else wanted
    hf.set_attn_implementation(before)
    if wanted == "auto":
        return "padded"
    raise ConfigError(f"packing={wanted} is not possible with {type(hf).__name__}: {obstacle}; use auto or padded")


def _obstacle(hf: Any) -> str | None:
    """Switch the attention and return why packed rows would be computed wrongly, or None when they are right.

    A trial is more reliable than a list of architectures: two rows that differ in their first segment only must give
    exactly the same states in the second.
    """
    try:
        hf.set_attn_implementation(attention.NAME)
        # Token ids up to 3, which every vocabulary has.
        states = [_states(hf, first) for first in ([1, 2, 3], [3, 1, 1])]
    except Exception as error:  # a model of any origin may fail in any way; the failure itself is the obstacle
        return f"{type(error).__name__}: {error}"
    if not torch.equal(states[0][3:], states[1][3:]):
        return "a layer other than attention carries state from one trajectory into the next"
    return None


@torch.no_grad()
def _states(hf: Any, first: list[int]) -> torch.Tensor:
    """Return the states [T, H] of two segments: the tokens `first`, then always the same three tokens."""
    rows = [
        TokenRow(np.array(ids), np.array([False, True, True]), group) for group, ids in enumerate([first, [1, 3, 2]])
    ]
    return decoder_states(hf.get_decoder(), token_batch(rows, "packed").to(hf.device))


def decoder_states(decoder: Any, batch: TokenBatch) -> torch.Tensor:
    """Return the decoder's states at every position of the input, flattened over rows: [positions, H]."""
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
    """Return the decoder's state before each target token, [n, H].

    This is the only place that shifts by one: every other array is aligned to the token that it describes.
    """
    return decoder_states(decoder, batch)[batch.prefixes]
