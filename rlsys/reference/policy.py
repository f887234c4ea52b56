"""The references without workers: the policy without its adapter, and no reference."""

from __future__ import annotations

from typing import Protocol

from rlsys.learner.policy_group import PolicyGroup
from rlsys.reference.pool import num_tokens
from rlsys.runtime.background import Background
from rlsys.runtime.batching import BatchingQueue
from rlsys.types import ReferenceScores, RolloutGroup


class Reference(Protocol):
    """The policy that the KL penalty compares with. Groups are put into `queue` as they are scored."""

    @property
    def queue(self) -> BatchingQueue[RolloutGroup, ReferenceScores] | None:
        """Where groups are put to be scored; None without a KL penalty."""

    async def refresh(self, step: int) -> None:
        """Move the reference towards the policy after steps that `algorithm.refresh` names."""

    def is_whole(self, step: int) -> bool:
        """Return whether the reference is as it should be after `step`: a refresh that is due has been made."""

    async def save(self, folder: str) -> None:
        """Write what training has changed of it."""

    async def load(self, folder: str) -> None:
        """Restore what `save` wrote."""


class FrozenReference:
    """A reference that never changes."""

    queue: BatchingQueue[RolloutGroup, ReferenceScores] | None = None

    async def refresh(self, step: int) -> None:
        """Do nothing; preflight refuses a refresh of such a reference."""

    def is_whole(self, step: int) -> bool:
        """Return True: it never changes."""
        return True

    async def save(self, folder: str) -> None:
        """Do nothing: it is what `model.path` holds."""

    async def load(self, folder: str) -> None:
        """Do nothing: it is what `model.path` holds."""


class PolicyWithoutAdapter(FrozenReference):
    """The base model under a policy with adapters. All ranks score together, between their updates."""

    def __init__(self, policy: PolicyGroup, background: Background) -> None:
        async def score(_: int, groups: list[RolloutGroup]) -> list[ReferenceScores]:
            return await policy.reference_scores(groups)

        # A single worker for the queue: all ranks score together, in one collective call.
        self.queue = BatchingQueue(1, score, background, weight=num_tokens)
