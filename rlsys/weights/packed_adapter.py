"""An adapter packed for the way from the learner to the engines, with sums that prove its arrival."""

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
from rlsys.models.lora import FILE

TOLERANCE = 1e-6  # relative, between sums over the same numbers in another order

# For each kind of matrix, A and B: the number of matrices and the sum of their absolute values.
Sums = Mapping[str, tuple[int, float]]


@dataclass(frozen=True)
class PackedAdapter:
    """The folder that peft and vLLM read, with its tensors in one array.

    Ray pickles a dictionary of some hundred tensors one by one; a single array goes through shared memory.
    """

    file: np.ndarray  # [num_bytes] uint8, in the safetensors format
    description: Mapping[str, Any]  # peft's configuration
    sums: Sums  # sums of the matrices as an engine holds them

    def write(self, folder: Path) -> None:
        """Create the folder and write both files into it."""
        folder.mkdir()
        self.file.tofile(folder / FILE)
        (folder / "adapter_config.json").write_text(json.dumps(self.description, default=_plain))


def pack_adapter(tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> PackedAdapter:
    """Pack an adapter's tensors, by the names of its file, with peft's description of it."""
    from safetensors.torch import save

    # A NumPy array, because Ray puts it into shared memory without copying; a torch tensor would be pickled.
    file = np.frombuffer(save(dict(tensors)), dtype=np.uint8)
    return PackedAdapter(file, description, tensor_sums(tensors, description))


def tensor_sums(tensors: Mapping[str, torch.Tensor], description: Mapping[str, Any]) -> Sums:
    """Return the sums of the matrices as engines hold them.

    vLLM multiplies the matrices B by the adapter's scale when it loads them, and rounds to its dtype. The same is done
    here before summing, so that rounding cannot make a difference.
    """
    rank = description["r"]  # rsLoRA divides by its root (arXiv:2312.03732)
    scale = description["lora_alpha"] / (math.sqrt(rank) if description["use_rslora"] else rank)
    factors = {"A": 1.0, "B": scale}
    return {
        kind: sums(tensor * factor for name, tensor in tensors.items() if f".lora_{kind}." in name)
        for kind, factor in factors.items()
    }


def sums(matrices: Iterable[torch.Tensor]) -> tuple[int, float]:
    """Return the number of matrices and the sum of their absolute values."""
    # float64 and fsum: the order of summing must not matter, since engines hold the matrices in another one.
    each = [float(matrix.abs().sum(dtype=torch.float64)) for matrix in matrices]
    return len(each), math.fsum(each)


def check_sums(expected: Sums, found: Sums, where: str) -> None:
    """Raise WorkerError when the engine named `where` holds other matrices than it was sent."""
    for kind, (count, total) in expected.items():
        if found[kind][0] != count or not math.isclose(found[kind][1], total, rel_tol=TOLERANCE, abs_tol=1e-9):
            raise WorkerError(
                f"{where}: the engine holds {found[kind][0]} matrices {kind} whose absolute values sum to "
                f"{found[kind][1]:.6g}; the learner sent {count} that sum to {total:.6g}"
            )


def _plain(value: Any) -> Any:
    """Return what JSON can write of peft's sets and enumerations."""
    return sorted(value) if isinstance(value, set) else str(value)
