"""One rank's data of one step: the trajectories that it trains on, with the arrays that their losses need."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlsys.models.packing import TokenRow
from rlsys.runtime.chunks import ChunkIndex, pick
from rlsys.types import Coefficients, ExperienceRow, Trajectory, ValueEstimate


@dataclass(frozen=True)
class RankBatch:
    """One rank's part of a step, without token arrays.

    The arrays come beside it as arguments of the Ray call, so that they travel from worker to worker; `items_of` joins
    the two.
    """

    minibatches: tuple[tuple[ExperienceRow, ...], ...]  # this rank's rows of each minibatch
    num_tokens: tuple[int, ...]  # trained tokens of each minibatch on all ranks: the denominators of means
    coefficients: Coefficients
    policy_version: int
    chunk_indices: Sequence[Sequence[ChunkIndex]]  # where each group's trajectories are in the chunks
    has_reference: bool
    has_estimates: bool
    dump_to: str | None = None  # folder for what `rlsys replay` needs; None: nothing is written


@dataclass(frozen=True)
class TrainItem:
    """One trajectory with everything that its loss needs; arrays are [L]."""

    row: ExperienceRow
    trajectory: Trajectory
    ref_logprobs: np.ndarray | None = None
    estimate: ValueEstimate | None = None

    def token_row(self) -> TokenRow:
        """Return the model's input for this trajectory."""
        return TokenRow(self.trajectory.token_ids, self.trajectory.loss_mask, self.row.group)


ZEROS = np.zeros(2, dtype=np.float32)
# Two tokens with nothing to train: the content of an empty microbatch. Its index -1 is no row's.
EMPTY_ITEM = TrainItem(
    row=ExperienceRow(-1, 0, 0, 0.0, 0.0, 2, 0),
    trajectory=Trajectory(
        token_ids=np.ones(2, dtype=np.int32),
        loss_mask=np.zeros(2, dtype=bool),
        behavior_logprobs=ZEROS,
        versions=(),
        finish_reason="stop",
        engine=0,
    ),
    ref_logprobs=ZEROS,
    estimate=ValueEstimate(ZEROS, ZEROS, ZEROS),
)


def items_of(batch: RankBatch, arrays: Sequence[Any]) -> list[list[TrainItem]]:
    """Join a batch's rows with their arrays; return the items of each minibatch.

    Args:
        batch: the rows.
        arrays: the chunks of trajectories; then for each group the reference's log-probabilities, if the batch has
            them; then for each group the critic's estimates, if the batch has them.
    """
    # Ray passes object references as single arguments, so the three kinds come in one flat list.
    num_groups = len(batch.chunk_indices)
    num_chunks = len(arrays) - num_groups * (batch.has_reference + batch.has_estimates)
    trajectories = pick(arrays[:num_chunks], batch.chunk_indices)
    references = arrays[num_chunks : num_chunks + num_groups] if batch.has_reference else None
    estimates = arrays[len(arrays) - num_groups :] if batch.has_estimates else None

    def item(row: ExperienceRow) -> TrainItem:
        return TrainItem(
            row,
            trajectories[row.group][row.sample],
            references[row.group][row.sample] if references is not None else None,
            estimates[row.group][row.sample] if estimates is not None else None,
        )

    return [[item(row) for row in minibatch] for minibatch in batch.minibatches]
