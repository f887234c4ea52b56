"""The states that a model's decoder computes for a batch, in every layout."""

from __future__ import annotations

from typing import Any

import torch

from rlsys.models.packing import TokenBatch


def decoder_of(hf: Any) -> Any:
    """Return the part of a causal model that maps token ids to the states before its output layer."""
    decoder = hf.get_decoder()
    if decoder.get_output_embeddings() is None:
        return decoder
    # Llama 4 returns a language model with its output layer, and that language model returns itself.
    return decoder.model if decoder.get_decoder() is decoder else decoder_of(decoder)


def decoder_output(decoder: Any, batch: TokenBatch, **options: Any) -> Any:
    """Return the decoder's output for a batch; its first part are the states at every position, [B, T, H]."""
    extra = {} if batch.segments is None else {"segments": batch.segments}
    return decoder(
        input_ids=batch.input_ids,
        attention_mask=batch.attention_mask,
        position_ids=batch.position_ids,
        use_cache=False,
        **extra,
        **options,
    )


def states_before_targets(output: Any, batch: TokenBatch) -> torch.Tensor:
    """Return a decoder's states before each target token, [n, H].

    This is the only place that shifts by one: every other array is aligned to the token that it describes.
    """
    states: torch.Tensor = output[0].flatten(0, 1)[batch.prefixes]
    return states


def prefix_states(decoder: Any, batch: TokenBatch) -> torch.Tensor:
    """Compute the decoder's states before each target token, [n, H]."""
    return states_before_targets(decoder_output(decoder, batch), batch)
