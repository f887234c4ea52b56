"""Hidden states that tokens are predicted from: the only place that shifts by one."""

from __future__ import annotations

from typing import Any

import torch


def prefix_states(
    decoder: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, mask: torch.Tensor
) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
    """The decoder's state before each masked token.

    Args:
        decoder: a transformers decoder, without its output layer.
        input_ids: [B, T] int64, right-padded.
        attention_mask: [B, T] int64, 1 for real tokens.
        mask: [B, T] bool, the n tokens asked for; column 0 has no prefix and must be False.

    Returns: states [n, H], and the rows and columns of the tokens, [n] int64 each.
    """
    hidden = decoder(input_ids=input_ids, attention_mask=attention_mask, use_cache=False)[0]
    rows, columns = mask.nonzero(as_tuple=True)
    return hidden[rows, columns - 1], (rows, columns)
