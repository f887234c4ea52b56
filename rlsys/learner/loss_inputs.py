"""The tensors that a microbatch's loss is computed from."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch

from rlsys.algorithms.inputs import LossInputs
from rlsys.learner.rank_batch import TrainItem
from rlsys.learner.token_records import TokenRecord
from rlsys.models.padding import pad


def loss_inputs(
    items: Sequence[TrainItem],
    logprobs: torch.Tensor,
    entropy: torch.Tensor,
    loss_mask: torch.Tensor,
    old_tokens: Mapping[int, TokenRecord],
    old_logprobs: str,
) -> LossInputs:
    """Pad the items' arrays to [B, T] and put them beside the policy's present output.

    Args:
        items: B trajectories.
        logprobs: log-probabilities under the policy as it is now, [B, T] with gradient.
        entropy: entropy of the policy as it is now, [B, T].
        loss_mask: [B, T] bool.
        old_tokens: records from before the step, by the rows' indices.
        old_logprobs: owner of the ratio's denominator (train.old_logprobs): `learner`, `engine`, or `none` for a ratio
            of 1.
    """

    def padded(arrays: Sequence[np.ndarray | None], dtype: torch.dtype = torch.float32) -> torch.Tensor | None:
        present = [array for array in arrays if array is not None]
        return pad(present, dtype).to(loss_mask.device) if len(present) == len(items) else None

    records = [old_tokens[item.row.index] for item in items]
    advantages = padded([item.estimate.advantages if item.estimate is not None else None for item in items])
    if advantages is None:  # without a critic every token has its trajectory's advantage
        per_row = torch.tensor([item.row.advantage for item in items], device=loss_mask.device)
        advantages = per_row[:, None].expand(logprobs.shape)
    behavior = padded([item.trajectory.behavior_logprobs for item in items])
    if old_logprobs == "learner":
        old = padded([record.logprobs for record in records])
    else:
        # Detached, the present policy's own log-probabilities make the ratio 1 and leave its gradient.
        old = behavior if old_logprobs == "engine" else logprobs.detach()
    assert old is not None
    return LossInputs(
        logprobs=logprobs,
        old_logprobs=old,
        advantages=advantages,
        loss_mask=loss_mask,
        ref_logprobs=padded([item.ref_logprobs for item in items]),
        behavior_logprobs=behavior,
        entropy=entropy,
        selected=padded([record.selected for record in records], torch.bool),
        high_entropy=padded([record.high_entropy for record in records], torch.bool),
    )


def finite_rows(inputs: LossInputs) -> list[bool]:
    """Return for each row whether the log-probabilities and advantages of all its trained tokens are finite."""
    bad = torch.zeros_like(inputs.loss_mask)  # [B, T]
    for values in (inputs.logprobs, inputs.advantages, inputs.behavior_logprobs, inputs.ref_logprobs):
        if values is not None:
            bad |= ~torch.isfinite(values.detach())
    return (~(bad & inputs.loss_mask).any(dim=1)).tolist()
