"""Whole parameters out of a model that ZeRO-3 may have divided among ranks.

Gathering is a collective: every rank must call these functions, in the same order, and rank 0 gets the result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import nn

from rlsys.models.parameters import adapter_parameters, exported_parameters


def gather_parameters(parameters: Sequence[nn.Parameter]) -> Any:
    """Return a context in which ZeRO-3 parameters are whole and can be read; for whole ones it does nothing.

    Inside it a parameter is a view of memory that DeepSpeed reuses when the context closes: copy what you keep.
    """
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        return contextlib.nullcontext()
    import deepspeed  # only where ZeRO-3 has loaded it already

    return deepspeed.zero.GatheredParameters(sharded)


def full_state(module: nn.Module, rank: int) -> dict[str, torch.Tensor]:
    """Return all parameters on the CPU with adapters merged in, on rank 0; an empty dictionary on other ranks."""
    return dict(_full_parameters(module, rank))


def _full_parameters(module: nn.Module, rank: int) -> Iterator[tuple[str, torch.Tensor]]:
    # One parameter at a time: gathered all at once, the model would have to fit into one GPU.
    for parameter in exported_parameters(module):
        with gather_parameters(parameter.sources):
            if rank == 0:
                yield parameter.name, parameter.read().cpu().clone()


def adapter_state(module: nn.Module, rank: int, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return the adapter's tensors on the CPU on rank 0, in `dtype` if given; an empty dictionary on other ranks."""
    parameters = adapter_parameters(module)
    with gather_parameters(list(parameters.values())):
        if rank != 0:
            return {}
        return {name: p.detach().to("cpu", dtype or p.dtype, copy=True) for name, p in parameters.items()}
