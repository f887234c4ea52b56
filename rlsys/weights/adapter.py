"""An adapter on its way from the learner to the engines: the bytes of its file, and sums that show it has arrived."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlsys.errors import WorkerError
from rlsys.models.adapters import FILE

TOLERANCE = 1e-6
"""Relative, of sums over the same numbers."""

Sums = Mapping[str, tuple[int, float]]
"""Of both kinds of matrices, A and B, their number and the sum of their absolute values."""


@dataclass(frozen=True)
class PackedAdapter:
    """What peft and vLLM read as a folder, as one array: a dictionary of some hundred tensors would be pickled one by
    one on the way."""

    file: np.ndarray  # [num_bytes] uint8, in the safetensors format
    description: Mapping[str, Any]  # peft's
    sums: Sums  # as an engine holds it

    def write(self, folder: Path) -> None:
        """Make the folder."""
        folder.mkdir()
        self.file.tofile(folder / FILE)
        (folder / "adapter_config.json").write_text(json.dumps(self.description, default=_plain))


def pack(tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> PackedAdapter:
    """An adapter's tensors by the names of its file, and peft's description of it."""
    from safetensors.torch import save

    file = np.frombuffer(save(dict(tensors)), dtype=np.uint8)
    return PackedAdapter(file, description, tensor_sums(tensors, description))


def tensor_sums(tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> Sums:
    """As engines hold them: they multiply the second kind with the adapter's scale, and round to their dtype."""
    rank = description["r"]
    scale = description["lora_alpha"] / (math.sqrt(rank) if description["use_rslora"] else rank)
    factors = {"A": 1.0, "B": scale}
    return {
        kind: sums(tensor * factor for name, tensor in tensors.items() if f".lora_{kind}." in name)
        for kind, factor in factors.items()
    }


def sums(matrices: Iterable[torch.Tensor]) -> tuple[int, float]:
    """Their number, and the sum of their absolute values."""
    each = [float(matrix.abs().sum(dtype=torch.float64)) for matrix in matrices]
    return len(each), math.fsum(each)


def check_sums(expected: Sums, found: Sums, where: str) -> None:
    """Raise WorkerError when an engine holds other matrices than it was sent."""
    for kind, (count, total) in expected.items():
        if found[kind][0] != count or not math.isclose(found[kind][1], total, rel_tol=TOLERANCE, abs_tol=1e-9):
            raise WorkerError(
                f"{where}: the engine holds {found[kind][0]} matrices {kind} with absolute values of "
                f"{found[kind][1]:.6g} in all; the learner sent {count} with {total:.6g}"
            )


def _plain(value: Any) -> Any:
    return sorted(value) if isinstance(value, set) else str(value)
