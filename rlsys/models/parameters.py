"""A policy's parameters under the names that others know them by: engines, Hugging Face folders, adapter files.

Adapters (peft) rename the layers that they wrap and add parameters of their own. Everything outside the learner knows
the model without adapters, so `exported_parameters` undoes that; `adapter_parameters` gives the adapter alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

NAME = "default"  # peft's name for the only adapter
PREFIX = "base_model.model."  # before every name in an adapter's file


@dataclass(frozen=True)
class ExportedParameter:
    """One parameter of the model without adapters.

    Attributes:
        name: its Hugging Face name.
        shape: its whole shape, also where ZeRO-3 has divided it among ranks.
        sources: the parameters that its value is computed from. Under ZeRO-3 they must be gathered before `read`.
        read: returns the value, with the adapter merged in where there is one.
    """

    name: str
    shape: tuple[int, ...]
    sources: Sequence[nn.Parameter]
    read: Callable[[], torch.Tensor]


def exported_parameters(hf: nn.Module) -> list[ExportedParameter]:
    """Return every parameter of the model without adapters, in the model's order.

    An adapted layer's weight has its adapter merged in; a module that is trained whole (`modules_to_save`) replaces the
    original.
    """
    # By identity of the weight: names of wrapped layers differ between kinds of adapters.
    owners = {id(layer.get_base_layer().weight): layer for layer in adapter_layers(hf)}
    exported = []
    for name, parameter in hf.named_parameters():
        if ".lora_" in name or ".original_module." in name:
            continue
        # Under ZeRO-3 a parameter's own shape is (0,) while it is not gathered; DeepSpeed keeps the real one.
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        plain_name = _plain(name)
        layer = owners.get(id(parameter))
        if layer is None:
            exported.append(ExportedParameter(plain_name, shape, [parameter], parameter.detach))
        else:
            sources = [parameter, *(p for n, p in layer.named_parameters() if n.startswith("lora_"))]
            exported.append(ExportedParameter(plain_name, shape, sources, _MergedWeight(layer)))
    return exported


def exported_buffers(hf: nn.Module) -> dict[str, torch.Tensor]:
    """Return the buffers that belong to the model's files, such as a router's correction, by their plain names."""
    found = {}
    for prefix, module in hf.named_modules():
        for name, buffer in module.named_buffers(recurse=False):
            full = f"{prefix}.{name}" if prefix else name
            if name not in module._non_persistent_buffers_set and ".original_module." not in full:
                found[_plain(full)] = buffer.detach()
    return found


def _plain(name: str) -> str:
    """Return the name that a parameter or buffer has without adapters."""
    return name.replace(".base_layer.", ".").replace(f".modules_to_save.{NAME}.", ".")


def adapter_layers(hf: nn.Module) -> list[Any]:
    """Return every layer of `hf` that has an adapter."""
    if not any(".lora_" in name for name, _ in hf.named_parameters()):
        return []  # do not import peft, which most runs never need
    from peft.tuners.lora import LoraLayer

    return [module for module in hf.modules() if isinstance(module, LoraLayer)]


def adapter_parameters(hf: nn.Module) -> dict[str, nn.Parameter]:
    """Return the adapter's parameters by the names that its file has for them."""
    found = {}
    for name, parameter in hf.named_parameters():
        # peft holds DoRA's magnitudes in a module by now, but its files have kept the name without `.weight`.
        if ".lora_magnitude_vector." in name:
            found[PREFIX + name.removesuffix(f".{NAME}.weight")] = parameter
        elif ".lora_" in name:
            found[PREFIX + name.replace(f".{NAME}.", ".")] = parameter
        elif f".modules_to_save.{NAME}." in name:
            found[PREFIX + name.replace(f".modules_to_save.{NAME}.", ".")] = parameter
    return found


class _MergedWeight:
    """A function that computes a layer's weight [out, in] with its adapter merged in."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        layer = self._layer
        base = layer.get_base_layer().weight
        # The sum is taken in float32: bfloat16 would round away most of a small adapter's part.
        merged = base.float() + layer.get_delta_weight(NAME).float()
        if layer.use_dora.get(NAME):
            # DoRA keeps the direction of each row and learns its length (arXiv:2402.09353, equation 5).
            lengths = layer.lora_magnitude_vector[NAME].weight.float() / merged.norm(dim=1)
            merged = lengths[:, None] * merged
        return merged.to(base.dtype)
