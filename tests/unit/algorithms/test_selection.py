"""Tokens chosen among all of an update's: by hand, and the same however the update is split over ranks."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from rlsys.algorithms.policy_losses import registry
from rlsys.algorithms.selection import UpdateTokens, covariances, top_entropy
from rlsys.learner.rank import NOTHING, TrainItem
from rlsys.learner.tokens import TokenRecord, choose
from rlsys.types import ExperienceRow, Trajectory


def tokens(logprobs: list[float], advantages: list[float], entropies: list[float] | None = None) -> UpdateTokens:
    columns = [torch.tensor(column) for column in (logprobs, entropies or [0.0] * len(logprobs), advantages)]
    return UpdateTokens(*columns, seed=0)


def test_covariances_by_hand() -> None:
    # Means -2 and 0: (1 * 1, 0 * -1, -1 * 0)
    assert covariances(tokens([-1.0, -2.0, -3.0], [1.0, -1.0, 0.0])).tolist() == [1.0, 0.0, 0.0]


def test_the_top_fifth_by_entropy_by_hand() -> None:
    entropies = [0.1, 0.9, 0.5, 0.2, 0.3]
    # Quantile 0.8 of five values lies at position 3.2: 0.5 + 0.2 * 0.4 = 0.58.
    assert top_entropy(tokens([0.0] * 5, [0.0] * 5, entropies), 0.2).tolist() == [False, True, False, False, False]
    assert top_entropy(tokens([0.0] * 5, [0.0] * 5, entropies), 1.0).all()


def test_the_top_by_entropy_is_trl_s() -> None:
    """TRL: GRPOTrainer.get_high_entropy_mask, on one process."""
    trl = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL comes with the dev extra")
    from types import SimpleNamespace

    one = SimpleNamespace(pad_across_processes=lambda x, **_: x, gather=lambda x: x)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        entropies = torch.rand(4, 5, generator=generator)
        mask = torch.arange(5)[None] < torch.randint(0, 6, (4, 1), generator=generator)
        theirs = trl.GRPOTrainer.get_high_entropy_mask(SimpleNamespace(accelerator=one), entropies, mask.int(), 0.7)
        flat = entropies[mask].tolist()
        ours = torch.zeros_like(mask)
        ours[mask] = top_entropy(tokens([0.0] * len(flat), [0.0] * len(flat), flat), 0.3)
        assert torch.equal(ours, theirs)


def test_kl_cov_takes_the_largest_and_clip_cov_draws_from_the_band() -> None:
    given = tokens([-1.0, -5.0, -2.0, -4.0], [4.0, -4.0, 0.0, 0.0])  # covariances 8, 8, 0, 0
    largest, by_lot = (registry.fact(name, "selects", None) for name in ("kl_cov", "clip_cov"))
    assert largest(given, ratio=0.5).tolist() == [True, True, False, False]
    drawn = [by_lot(given, ratio=0.25, cov_low=1.0, cov_high=9.0).tolist() for _ in range(3)]
    assert drawn[0] == drawn[1] == drawn[2]  # every rank draws alike
    assert sum(drawn[0]) == 1
    assert drawn[0][:2].count(True) == 1
    assert by_lot(given, ratio=0.25, cov_low=9.0, cov_high=10.0).tolist() == [False] * 4
    empty = tokens([], [])
    assert largest(empty).tolist() == by_lot(empty).tolist() == top_entropy(empty, 0.2).tolist() == []


def trajectory(row: int) -> tuple[TrainItem, TokenRecord]:
    """Three to five sampled tokens after a prompt of two."""
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
    """`choose` on every rank of a made-up gang, whose gathering hands out what all of them would send."""

    def select(given: UpdateTokens) -> Any:
        return registry.fact("kl_cov", "selects", None)(given, ratio=0.25)

    ranks = [[trajectory(row) for row in rows] for rows in split]
    sent: list[Any] = []
    for rank in ranks:  # first what each would send
        choose([i for i, _ in rank], records(rank), lambda value: sent.append(value) or [value], select, 0.3, seed=1)
    everything: dict[int, TokenRecord] = {}
    for rank in ranks:
        mine = records(rank)
        choose([item for item, _ in rank], mine, lambda _: sent, select, 0.3, seed=1)
        assert not mine[-1].selected.any()  # type: ignore[union-attr]
        everything |= mine
    return everything


def records(rank: list[tuple[TrainItem, TokenRecord]]) -> dict[int, TokenRecord]:
    nothing = TokenRecord(np.zeros(2, np.float32), np.zeros(2, np.float32))
    return {NOTHING.row.index: nothing, **{item.row.index: record for item, record in rank}}
