"""The choice of tokens is the same for every division of an update over ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlsys.algorithms.policy_losses import registry
from rlsys.algorithms.selection import UpdateTokens
from rlsys.learner.rank_batch import EMPTY_ITEM, TrainItem
from rlsys.learner.token_records import TokenRecord, select_tokens
from rlsys.types import ExperienceRow, Trajectory


def trajectory(row: int) -> tuple[TrainItem, TokenRecord]:
    """Build a trajectory of three to five sampled tokens after a prompt of two, and its record."""
    generator = np.random.default_rng(row)
    length = 5 + row % 3
    mask = np.arange(length) >= 2
    record = TokenRecord(*(np.where(mask, generator.normal(size=length), 0).astype(np.float32) for _ in range(2)))
    arrays = Trajectory(np.ones(length, np.int32), mask, np.zeros(length, np.float32), (), "stop", 0)
    return TrainItem(ExperienceRow(row, 0, row, float(generator.normal()), 1.0, length, length - 2), arrays), record


@pytest.mark.parametrize("split", [[[0, 1, 2, 3, 4]], [[3, 0], [4, 2, 1]], [[], [1, 2], [0, 3, 4]]])
def test_the_choice_is_the_same_under_any_split_over_ranks(split: list[list[int]]) -> None:
    whole = chosen([[0, 1, 2, 3, 4]])
    found = chosen(split)
    for row in range(5):
        assert found[row].selected is not None
        assert found[row].high_entropy is not None
        assert found[row].selected.tolist() == whole[row].selected.tolist()
        assert found[row].high_entropy.tolist() == whole[row].high_entropy.tolist()
        assert not found[row].selected[:2].any()
    assert sum(int(found[row].selected.sum()) for row in range(5)) == 4  # a quarter of 19 tokens


def chosen(split: list[list[int]]) -> dict[int, TokenRecord]:
    """Select tokens on every rank of a simulated group, whose gathering returns what all ranks send."""

    def select(given: UpdateTokens) -> Any:
        return registry.fact("kl_cov", "selects", None)(given, ratio=0.25)

    ranks = [[trajectory(row) for row in rows] for rows in split]
    sent: list[Any] = []
    for rank in ranks:  # first collect what each sends
        select_tokens(
            [i for i, _ in rank], records(rank), lambda value: sent.append(value) or [value], select, 0.3, seed=1
        )
    everything: dict[int, TokenRecord] = {}
    for rank in ranks:
        mine = records(rank)
        select_tokens([item for item, _ in rank], mine, lambda _: sent, select, 0.3, seed=1)
        assert not mine[-1].selected.any()  # type: ignore[union-attr]
        everything |= mine
    return everything


def records(rank: list[tuple[TrainItem, TokenRecord]]) -> dict[int, TokenRecord]:
    nothing = TokenRecord(np.zeros(2, np.float32), np.zeros(2, np.float32))
    return {EMPTY_ITEM.row.index: nothing, **{item.row.index: record for item, record in rank}}
