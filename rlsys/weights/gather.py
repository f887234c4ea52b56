"""Whole parameters out of a model that ZeRO-3 may have divided among ranks.

Gathering is a collective: every rank must call these functions, in the same order, and rank 0 gets the result.
"""

from __future__ import annotations

import contextlib
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from rlsys.models.folder import saved_dtype
from rlsys.models.parameters import adapter_parameters, exported_buffers, exported_parameters


def gather_parameters(parameters: Sequence[nn.Parameter]) -> Any:
    """Return a context in which ZeRO-3 parameters are whole and can be read; for whole ones it does nothing.

    Inside it a parameter is a view of memory that DeepSpeed reuses when the context closes: copy what you keep.
    """
    sharded = [parameter for parameter in parameters if hasattr(parameter, "ds_id")]
    if not sharded:
        return contextlib.nullcontext()
    import deepspeed  # only where ZeRO-3 has loaded it already

    return deepspeed.zero.GatheredParameters(sharded)


def full_state(hf: Any, rank: int, dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """Return what the model's files hold, on the CPU on rank 0; an empty dictionary on other ranks.

    That is every parameter with adapters merged in, rounded to `dtype` here and only here, and every saved buffer as it
    is.
    """
    state = {}
    # One parameter at a time: gathered all at once, the model would have to fit into one GPU.
    for parameter in exported_parameters(hf):
        with gather_parameters(parameter.sources):
            if rank == 0:
                stored = saved_dtype(hf, parameter.name, dtype)
                state[parameter.name] = parameter.read().to("cpu", stored, copy=True)
    if rank != 0:
        return {}
    return state | {name: buffer.to("cpu", copy=True) for name, buffer in exported_buffers(hf).items()}


def adapter_state(module: nn.Module, rank: int, dtype: torch.dtype | None = None) -> dict[str, torch.Tensor]:
    """Return the adapter's tensors on the CPU on rank 0, in `dtype` if given; an empty dictionary on other ranks."""
    parameters = adapter_parameters(module)
    with gather_parameters(list(parameters.values())):
        if rank != 0:
            return {}
        return {name: p.detach().to("cpu", dtype or p.dtype, copy=True) for name, p in parameters.items()}
