"""Proof, inside an engine's process, of what arrived with a broadcast and of what the model did with it.

The bytes of each bucket are summed up as they were received, for the driver to compare with what was sent. Then the
model must have loaded every parameter that its first broadcast loaded. And where the engine keeps a layer's weights as
they come (on GPUs mostly; the CPU backend packs them), sums over the layer's parameters must equal those over what was
received for it; in which layers that is so, the first broadcast shows.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch

from rlsys.weights.checksum import word_sum

# Groups of parameters that are summed up together: a layer by its number, and everything outside of layers.
OUTSIDE = "outside of the layers"
# Parameters that vLLM's reload leaves as they are, and that most learners do not send.
NEVER_LOADED = ("e_score_correction_bias",)


class Arrivals:
    """The broadcasts of one process. Per broadcast: `begin`, `add` for every bucket, `lose`, `finish`."""

    def __init__(self) -> None:
        self._known: set[str] | None = None  # parameters that the first broadcast loaded
        self._comparable: set[str] | None = None  # groups whose sums agreed after the first one
        self._different: list[str] = []
        self._equal: set[str] = set()
        self._clear(set())

    def begin(self, names: Iterable[str]) -> None:
        """Start a broadcast; `names` are the engine's parameters, each tensor once."""
        self._clear(set(names))

    def add(
        self, named: Sequence[tuple[str, torch.Tensor]], loaded: Iterable[str] | None, checksum: torch.Tensor
    ) -> None:
        """Take the tensors of a bucket, the engine's parameters that they went to (None: unknown), and its checksum."""
        self._checksums.append(checksum)
        if loaded is None:
            self._is_known = False
        else:
            self._loaded.update(loaded)
        for name, tensor in named:
            group = group_of(name)
            self._num_bytes[group] += tensor.nbytes
            self._dtypes[group].add(tensor.dtype)
            self._sizes[group] += tensor.numel()
            if self._comparable is None or group in self._comparable:
                self._received[group].append(word_sum(tensor))

    def lose(self, names: set[str]) -> None:
        """Take back that these parameters were loaded: the loader said so, but they got nothing."""
        self._loaded -= names

    def finish(self, parameters: Mapping[str, torch.Tensor]) -> None:
        """Compare what was received with the engine's parameters, by name, as they are after loading."""
        held: dict[str, list[torch.Tensor]] = defaultdict(list)
        sizes: dict[str, int] = defaultdict(int)
        for name, parameter in parameters.items():
            group = group_of(name)
            if name in self._loaded and group in self._received:
                held[group].append(word_sum(self._as_sent(parameter, group)))
                sizes[group] += parameter.numel()
        # An engine may pad what it holds, with whatever is in that memory after a reload.
        whole = {group: sums for group, sums in self._received.items() if sizes[group] == self._sizes[group]}
        equal = {group for group, sums in whole.items() if _total(sums) == _total(held[group])}
        if self._comparable is None:
            self._comparable = equal
        else:
            self._different = sorted(self._comparable & set(self._received) - equal)
        if self._is_known and self._known is None:
            self._known = self._loaded & self._names
        self._equal = equal

    def report(self) -> dict[str, Any]:
        """Return the last broadcast's findings as plain values, see `receipt.Receipt`."""
        whole = sum(self._num_bytes.values())
        return {
            "checksums": [int(each) for each in self._checksums],
            "missing": self._missing(),
            "different": self._different,
            "compared_fraction": sum(self._num_bytes[group] for group in self._equal) / max(whole, 1),
        }

    def _missing(self) -> list[str]:
        """Return the parameters that got nothing: of those that the first broadcast loaded, or of layers that it did.

        A whole part of the engine's model that the learner does not have, as a vision tower, is not missing.
        """
        if not self._is_known:
            return []
        layers = {_layer_of(name) for name in self._loaded} - {None}
        expected = (self._known or set()) | {name for name in self._names if _layer_of(name) in layers}
        return sorted(name for name in expected - self._loaded if not name.endswith(NEVER_LOADED))

    def _as_sent(self, parameter: torch.Tensor, group: str) -> torch.Tensor:
        """Return a parameter in the dtype that the learner sends its group in; some groups have two (see `Entry`)."""
        dtypes = self._dtypes[group]
        return parameter if parameter.dtype in dtypes else parameter.to(min(dtypes, key=lambda dtype: dtype.itemsize))

    def _clear(self, names: set[str]) -> None:
        self._names = names
        self._loaded: set[str] = set()
        self._is_known = True
        self._checksums: list[torch.Tensor] = []
        self._num_bytes: dict[str, int] = defaultdict(int)
        self._dtypes: dict[str, set[torch.dtype]] = defaultdict(set)
        self._sizes: dict[str, int] = defaultdict(int)  # in numbers
        self._received: dict[str, list[torch.Tensor]] = defaultdict(list)
        self._different = []
        self._equal = set()


def group_of(name: str) -> str:
    """Return the group that a parameter is summed up in; a checkpoint's name and the engine's give the same."""
    number = next((part for part in name.split(".") if part.isdigit()), None)
    return OUTSIDE if number is None else f"layer {number}"


def _layer_of(name: str) -> str | None:
    """Return a name up to its first number; None outside of layers."""
    parts = name.split(".")
    place = next((place for place, part in enumerate(parts) if part.isdigit()), None)
    return None if place is None else ".".join(parts[: place + 1])


def _total(sums: Sequence[torch.Tensor]) -> int:
    return int(torch.stack(list(sums)).sum()) if sums else 0
