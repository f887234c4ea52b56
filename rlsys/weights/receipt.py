"""The driver's comparison of what the learner sent with what every process of every engine received and loaded."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlsys.errors import WeightMismatchError
from rlsys.weights.manifest import Manifest

MAX_NAMES = 6  # names of parameters in a message


@dataclass(frozen=True)
class Receipt:
    """One engine process's findings about one broadcast.

    Attributes:
        checksums: of every bucket's bytes as they were received; empty where they are not checked.
        missing: the engine's parameters that got nothing.
        different: layers whose parameters hold other numbers than were received for them.
        compared_fraction: share of the bytes that were found again in the engine's parameters.
    """

    checksums: Sequence[int]
    missing: Sequence[str]
    different: Sequence[str]
    compared_fraction: float


@dataclass(frozen=True)
class Received:
    """One engine's broadcast: its times in seconds, and a receipt of each of its processes."""

    times: Mapping[str, float]
    receipts: Sequence[Receipt]


def check_receipts(
    engine: str, receipts: Sequence[Receipt], sent: Sequence[int], cut: Sequence[Manifest], policy_version: int
) -> None:
    """Raise WeightMismatchError when a process of an engine does not hold what was sent.

    Args:
        engine: the engine's name.
        receipts: what each of its processes found, by rank.
        sent: the checksums of the buckets on the learner.
        cut: the parameters of each bucket.
        policy_version: the version that was broadcast.
    """
    for rank, receipt in enumerate(receipts):
        where = f"policy version {policy_version} did not reach {engine} (rank {rank} of {len(receipts)}) whole"
        if len(receipt.checksums) != len(sent):
            raise WeightMismatchError(
                f"{where}: {len(sent)} buckets were sent and {len(receipt.checksums)} received. {_WHAT_TO_DO}"
            )
        pairs = enumerate(zip(sent, receipt.checksums, strict=True))
        wrong = [number for number, (ours, theirs) in pairs if ours != theirs]
        if wrong:
            names = _listed([entry.name for number in wrong for entry in cut[number]])
            raise WeightMismatchError(
                f"{where}: the bytes of {len(wrong)} of {len(sent)} buckets arrived changed, those of {names}. "
                f"The channel lost or overwrote them. {_WHAT_TO_DO}"
            )
        if receipt.missing:
            raise WeightMismatchError(
                f"{where}: {_listed(receipt.missing)} received no weights and kept older ones. {_WHAT_TO_DO}"
            )
        if receipt.different:
            raise WeightMismatchError(
                f"{where}: the bytes arrived, but the engine's parameters hold other numbers: "
                f"{_listed(receipt.different)}. Its loader did not use them. {_WHAT_TO_DO}"
            )


_WHAT_TO_DO = (
    "Nothing was trained on its samples. Resume from the last checkpoint; try another weights.backend if it happens "
    "again. weights.verify=false turns the check off"
)


def _listed(names: Sequence[str]) -> str:
    more = len(names) - MAX_NAMES
    return ", ".join(names[:MAX_NAMES]) + (f" and {more} more" if more > 0 else "")
