"""What a learner keeps of each token from before the step, and the choices made among all of an update's tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from rlsys.algorithms.loss import Select
from rlsys.algorithms.selection import UpdateTokens, top_entropy
from rlsys.learner.rank import TrainItem


@dataclass(frozen=True)
class TokenRecord:
    """One trajectory under the policy as it was before the step, arrays [L]; 0 and False outside the loss mask."""

    logprobs: np.ndarray  # float32
    entropies: np.ndarray  # float32
    selected: np.ndarray | None = None  # bool: the policy loss's own choice
    high_entropy: np.ndarray | None = None  # bool


def records_of(items: Sequence[TrainItem], logprobs: torch.Tensor, entropy: torch.Tensor) -> dict[int, TokenRecord]:
    """Each item's rows of [B, T] tensors, by its index in the step."""
    columns = logprobs.detach().cpu().numpy(), entropy.detach().cpu().numpy()
    return {
        item.row.index: TokenRecord(*(column[row, : item.trajectory.num_tokens] for column in columns))
        for row, item in enumerate(items)
    }


def choose(
    items: Sequence[TrainItem],
    records: MutableMapping[int, TokenRecord],
    gathered: Callable[[Any], list[Any]],
    select: Select | None,
    top_quantile: float,
    *,
    seed: int,
) -> None:
    """Fill in `selected` and `high_entropy` of this rank's `records`, deciding over the tokens of all ranks.

    Every rank gathers three floats a token and decides alike; the order of rows is the step's, whoever holds them.

    Args:
        gathered: gives every rank's value; all ranks must call.
        select: the policy loss's choice, or None.
        top_quantile: share of tokens that count as of high entropy; 1 makes no choice.
    """
    if select is None and top_quantile >= 1.0:
        return
    columns: dict[int, tuple[np.ndarray, ...]] = {}
    for rank in gathered({item.row.index: _columns(item, records[item.row.index]) for item in items}):
        columns |= rank
    order = sorted(columns)
    empty = np.zeros(0, dtype=np.float32)
    flat = [torch.from_numpy(np.concatenate([empty, *(columns[i][k] for i in order)])) for k in range(3)]
    tokens = UpdateTokens(logprobs=flat[0], entropies=flat[1], advantages=flat[2], seed=seed)
    starts = dict(zip(order, np.cumsum([0, *(len(columns[i][0]) for i in order)]).tolist(), strict=False))
    selected = select(tokens).numpy() if select is not None else None
    high = top_entropy(tokens, top_quantile).numpy() if top_quantile < 1.0 else None
    masks: dict[int, np.ndarray] = {item.row.index: item.trajectory.loss_mask for item in items}
    for index in list(records):
        mask = masks.get(index, np.zeros(len(records[index].logprobs), dtype=bool))
        records[index] = replace(
            records[index],
            selected=_spread(selected, starts, index, mask) if select is not None else None,
            high_entropy=_spread(high, starts, index, mask) if high is not None else None,
        )


def _columns(item: TrainItem, record: TokenRecord) -> tuple[np.ndarray, ...]:
    mask = item.trajectory.loss_mask
    advantages = np.full(int(mask.sum()), item.row.advantage, dtype=np.float32)
    if item.estimate is not None:
        advantages = item.estimate.advantages[mask]
    return record.logprobs[mask], record.entropies[mask], advantages


def _spread(flags: np.ndarray | None, starts: Mapping[int, int], index: int, mask: np.ndarray) -> np.ndarray:
    """This trajectory's flags, back at its tokens' places: [L] bool."""
    out = np.zeros(len(mask), dtype=bool)
    if flags is not None and index in starts:
        start = starts[index]
        out[mask] = flags[start : start + int(mask.sum())]
    return out
