"""Numbers of each token from before the step, and the choice of tokens among all tokens of an update."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rlsys.algorithms.loss import Select
from rlsys.algorithms.selection import UpdateTokens, top_entropy
from rlsys.learner.rank_batch import TrainItem


@dataclass(frozen=True)
class TokenRecord:
    """One trajectory under the policy as it was before the step, arrays [L]; 0 and False outside the loss mask."""

    logprobs: np.ndarray  # float32
    entropies: np.ndarray  # float32
    selected: np.ndarray | None = None  # bool, tokens chosen by the policy loss
    high_entropy: np.ndarray | None = None  # bool, tokens that the policy gradient uses


def records_of(items: Sequence[TrainItem], logprobs: torch.Tensor, entropy: torch.Tensor) -> dict[int, TokenRecord]:
    """Cut [B, T] tensors into one record per item, by the item's index in the step."""
    columns = logprobs.detach().cpu().numpy(), entropy.detach().cpu().numpy()
    return {
        item.row.index: TokenRecord(*(column[row, : item.trajectory.num_tokens] for column in columns))
        for row, item in enumerate(items)
    }


def select_tokens(
    items: Sequence[TrainItem],
    records: MutableMapping[int, TokenRecord],
    all_gather: Callable[[Any], list[Any]],
    select: Select | None,
    top_quantile: float,
    *,
    seed: int,
) -> None:
    """Fill in `selected` and `high_entropy` of this rank's `records`, choosing among the tokens of all ranks.

    A quantile must be taken over the whole update, not over one rank's part. So every rank gathers three floats per
    token, puts them in the order of the step's rows, whichever rank holds them, and makes the same choice.

    Args:
        items: this rank's trajectories of the update.
        records: records by the items' indices; changed in place.
        all_gather: returns every rank's value; a collective, so all ranks must call.
        select: the policy loss's choice, or None.
        top_quantile: share of tokens that count as high entropy; 1 makes no choice.
        seed: seed of random choices, the same on every rank.
    """
    if select is None and top_quantile >= 1.0:
        return
    columns: dict[int, tuple[np.ndarray, ...]] = {}  # the columns of all ranks, by the rows' indices in the step
    for of_rank in all_gather({item.row.index: _columns(item, records[item.row.index]) for item in items}):
        columns |= of_rank
    order = sorted(columns)
    empty = np.zeros(0, dtype=np.float32)  # np.concatenate refuses an update without rows
    flat = [torch.from_numpy(np.concatenate([empty, *(columns[i][k] for i in order)])) for k in range(3)]  # [n] each
    tokens = UpdateTokens(logprobs=flat[0], entropies=flat[1], advantages=flat[2], seed=seed)
    # Where each row's tokens begin among all n. There is one start more than there are rows: the last is n itself.
    starts = dict(zip(order, np.cumsum([0, *(len(columns[i][0]) for i in order)]).tolist(), strict=False))
    selected = select(tokens).numpy() if select is not None else None
    high = top_entropy(tokens, top_quantile).numpy() if top_quantile < 1.0 else None
    masks: dict[int, np.ndarray] = {item.row.index: item.trajectory.loss_mask for item in items}
    for index in list(records):
        # The records of empty microbatches have no item: nothing in them is trained.
        mask = masks.get(index, np.zeros(len(records[index].logprobs), dtype=bool))
        records[index] = replace(
            records[index],
            selected=_spread(selected, starts, index, mask) if selected is not None else None,
            high_entropy=_spread(high, starts, index, mask) if high is not None else None,
        )


def _columns(item: TrainItem, record: TokenRecord) -> tuple[np.ndarray, ...]:
    """Return log-probability, entropy and advantage of an item's trained tokens, [n] float32 each."""
    mask = item.trajectory.loss_mask
    advantages = np.full(int(mask.sum()), item.row.advantage, dtype=np.float32)
    if item.estimate is not None:
        advantages = item.estimate.advantages[mask]
    return record.logprobs[mask], record.entropies[mask], advantages


def _spread(flags: np.ndarray, starts: Mapping[int, int], index: int, mask: np.ndarray) -> np.ndarray:
    """Bring one trajectory's flags from the list of all tokens back to its tokens, [L] bool."""
    out = np.zeros(len(mask), dtype=bool)
    if index in starts:
        start = starts[index]
        out[mask] = flags[start : start + int(mask.sum())]
    return out
