"""A policy's parameters under the names and in the shapes that its checkpoints have, which every engine's loader knows.

transformers fuses and renames parameters when it loads a checkpoint: the experts of a mixture become one tensor,
`block_sparse_moe` becomes `mlp`. `save_pretrained` undoes that, and so do these functions, one parameter at a time, so
that the model never has to be whole.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from rlsys.errors import ConfigError
from rlsys.models.parameters import ExportedParameter, exported_parameters

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class CheckpointParameter:
    """Tensors of a checkpoint that are made of one parameter, or of a few that cannot be told apart in it.

    Attributes:
        shapes: the tensors' names and shapes.
        sources: the parameters that their values are computed from. Under ZeRO-3 they must be gathered before `read`.
        read: returns the values by name.
        member: the parameter's name in the model, where the tensors are made of one alone.
    """

    shapes: Mapping[str, tuple[int, ...]]
    sources: Sequence[nn.Parameter]
    read: Callable[[], Mapping[str, torch.Tensor]]
    member: str | None = None


def checkpoint_parameters(hf: nn.Module) -> list[CheckpointParameter]:
    """Return everything that a checkpoint of the model without adapters stores, in the model's order.

    Raises:
        ConfigError: transformers stores parameters of several layers as one tensor.
    """
    exported = exported_parameters(hf)
    whole = _stored_shapes(hf, exported)
    groups: dict[str, list[ExportedParameter]] = {}
    is_renamed = whole != {parameter.name: parameter.shape for parameter in exported}
    for parameter in exported:
        is_alone = not is_renamed or _stored_shapes(hf, [parameter]).items() <= whole.items()
        # Parameters that are stored together are those of one layer, as q, k and v are.
        groups.setdefault(parameter.name if is_alone else _layer_of(parameter.name), []).append(parameter)
    found = [_stored(hf, members, is_renamed=is_renamed) for members in groups.values()]
    together: Shapes = {name: shape for parameter in found for name, shape in parameter.shapes.items()}
    if together != whole:
        names = ", ".join(sorted(set(together.items()) ^ set(whole.items()))[0][:1])
        raise ConfigError(
            f"{type(hf).__name__}: transformers stores parameters of several layers in one tensor ({names}), so the "
            "weights cannot be sent layer by layer"
        )
    return found


def _stored(hf: nn.Module, members: list[ExportedParameter], *, is_renamed: bool) -> CheckpointParameter:
    def read() -> Mapping[str, torch.Tensor]:
        values = {member.name: member.read() for member in members}
        return _renamed(hf, values) if is_renamed else values

    shapes = _stored_shapes(hf, members) if is_renamed else {member.name: member.shape for member in members}
    sources = [source for member in members for source in member.sources]
    return CheckpointParameter(shapes, sources, read, members[0].name if len(members) == 1 else None)


def _stored_shapes(hf: nn.Module, parameters: Sequence[ExportedParameter]) -> Shapes:
    # On the meta device tensors have shapes but no memory.
    values = {parameter.name: torch.empty(parameter.shape, device="meta") for parameter in parameters}
    return {name: tuple(tensor.shape) for name, tensor in _renamed(hf, values).items()}


def _renamed(hf: Any, values: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the tensors that `hf.save_pretrained` would write for these parameters."""
    from transformers import PreTrainedModel
    from transformers.core_model_loading import revert_weight_conversion

    if not isinstance(hf, PreTrainedModel):
        return dict(values)
    stored: dict[str, torch.Tensor] = revert_weight_conversion(hf, dict(values))
    return stored


def _layer_of(name: str) -> str:
    """Return the beginning of a name up to its first number, which counts layers."""
    parts = name.split(".")
    numbers = [place for place, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[: numbers[0] + 1]) if numbers else ""
