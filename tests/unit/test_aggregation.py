"""Sums over microbatches are the whole step's mean."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsys.algorithms.aggregation.sequence_mean import sequence_mean
from rlsys.algorithms.aggregation.token_mean import token_mean
from rlsys.types import LossTotals

PER_TOKEN = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
MASK = torch.tensor([[False, True, True], [False, False, True]])
BOTH = pytest.mark.parametrize("aggregate", [token_mean, sequence_mean])
Aggregate = Callable[[torch.Tensor, torch.Tensor, LossTotals], torch.Tensor]


def test_token_mean_by_hand() -> None:
    # (2 + 3 + 6) / 3 tokens
    assert token_mean(PER_TOKEN, MASK, LossTotals(num_tokens=3, num_trajectories=2)).item() == pytest.approx(11 / 3)


def test_sequence_mean_by_hand() -> None:
    # rows: (2 + 3) / 2 = 2.5 and 6 / 1 = 6; (2.5 + 6) / 2 trajectories
    assert sequence_mean(PER_TOKEN, MASK, LossTotals(num_tokens=3, num_trajectories=2)).item() == pytest.approx(4.25)


def test_the_denominators_are_the_whole_step_s() -> None:
    totals = LossTotals(num_tokens=30, num_trajectories=20)
    assert token_mean(PER_TOKEN, MASK, totals).item() == pytest.approx(11 / 30)
    assert sequence_mean(PER_TOKEN, MASK, totals).item() == pytest.approx(8.5 / 20)


@st.composite
def splits(draw: st.DrawFn) -> tuple[list[list[int]], list[list[bool]], list[int]]:
    """Rows of integer losses, their masks, and the microbatch of each row."""
    width = draw(st.integers(1, 5))
    rows = draw(st.integers(1, 6))
    losses = [draw(st.lists(st.integers(-9, 9), min_size=width, max_size=width)) for _ in range(rows)]
    masks = [draw(st.lists(st.booleans(), min_size=width, max_size=width)) for _ in range(rows)]
    return losses, masks, draw(st.lists(st.integers(0, 3), min_size=rows, max_size=rows))


@BOTH
@given(case=splits())
def test_any_split_adds_up_to_the_whole(
    aggregate: Aggregate, case: tuple[list[list[int]], list[list[bool]], list[int]]
) -> None:
    per_token, mask = torch.tensor(case[0], dtype=torch.float64), torch.tensor(case[1])
    totals = LossTotals(num_tokens=int(mask.sum()), num_trajectories=len(case[0]))
    part_of = torch.tensor(case[2])
    parts = [aggregate(per_token[part_of == i], mask[part_of == i], totals) for i in range(4)]
    assert sum(part.item() for part in parts) == pytest.approx(aggregate(per_token, mask, totals).item(), abs=1e-9)


@BOTH
def test_nothing_to_train_is_zero_with_a_gradient_of_zero(aggregate: Aggregate) -> None:
    per_token = torch.ones(2, 3, requires_grad=True)
    loss = aggregate(per_token, torch.zeros(2, 3, dtype=torch.bool), LossTotals(num_tokens=0, num_trajectories=0))
    loss.backward()
    assert loss.item() == 0.0
    assert torch.equal(per_token.grad, torch.zeros(2, 3))


@BOTH
def test_what_stands_outside_the_mask_is_not_read(aggregate: Aggregate) -> None:
    totals = LossTotals(num_tokens=3, num_trajectories=2)
    spoiled = torch.where(MASK, PER_TOKEN, torch.nan)
    assert torch.equal(aggregate(spoiled, MASK, totals), aggregate(PER_TOKEN, MASK, totals))
