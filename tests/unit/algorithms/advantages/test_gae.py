"""Generalised advantage estimation and the critic's loss, by hand (tolerance 1e-6)."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsys.algorithms.advantages.gae import gae
from rlsys.algorithms.value_loss import value_loss


def run(
    rewards: list[list[float]], values: list[list[float]], mask: list[list[int]], **options: float
) -> tuple[list[list[float]], list[list[float]]]:
    advantages, returns = gae(torch.tensor(rewards), torch.tensor(values), torch.tensor(mask).bool(), **options)
    return advantages.tolist(), returns.tolist()


def test_two_tokens_by_hand() -> None:
    # delta_2 = 1 - 0.5 = 0.5; delta_1 = 0 + 0.9 * 0.5 - 0.2 = 0.25; A_1 = 0.25 + 0.9 * 0.8 * 0.5 = 0.61.
    advantages, returns = run([[0, 0, 1]], [[9, 0.2, 0.5]], [[0, 1, 1]], gamma=0.9, lam=0.8)
    assert advantages[0] == pytest.approx([0, 0.61, 0.5])
    assert returns[0] == pytest.approx([0, 0.81, 1.0])


def test_rows_of_unequal_length_are_independent() -> None:
    alone, _ = run([[0, 1.0]], [[0.3, 0.5]], [[1, 1]])
    together, _ = run([[0, 1.0, 0, 0], [0, 0, 0, 2.0]], [[0.3, 0.5, 7, 7], [1, 2, 3, 4]], [[1, 1, 0, 0], [1, 1, 1, 1]])
    assert together[0] == pytest.approx([*alone[0], 0, 0])


def test_tokens_of_an_environment_in_between_are_stepped_over() -> None:
    plain, _ = run([[0.1, 0.2, 1.0]], [[0.3, 0.5, 0.7]], [[1, 1, 1]])
    spread, _ = run([[0.1, 0, 0, 0.2, 0, 1.0]], [[0.3, 8, 8, 0.5, 8, 0.7]], [[1, 0, 0, 1, 0, 1]])
    assert [spread[0][i] for i in (0, 3, 5)] == pytest.approx(plain[0])
    assert [spread[0][i] for i in (1, 2, 4)] == [0, 0, 0]


@given(st.lists(st.tuples(st.floats(-2, 2), st.floats(-2, 2)), min_size=1, max_size=7))
def test_lambda_1_is_the_return_minus_the_value_and_0_the_td_error(tokens: list[tuple[float, float]]) -> None:
    rewards, values = [[r for r, _ in tokens]], [[v for _, v in tokens]]
    mask = [[1] * len(tokens)]
    monte_carlo, returns = run(rewards, values, mask, lam=1.0)
    to_go = [sum(rewards[0][t:]) for t in range(len(tokens))]
    assert returns[0] == pytest.approx(to_go, abs=1e-5)
    assert monte_carlo[0] == pytest.approx([g - v for g, v in zip(to_go, values[0], strict=True)], abs=1e-5)
    one_step, _ = run(rewards, values, mask, lam=0.0)
    following = [*values[0][1:], 0.0]
    expected = [r + n - v for r, n, v in zip(rewards[0], following, values[0], strict=True)]
    assert one_step[0] == pytest.approx(expected, abs=1e-5)


def test_value_loss_by_hand() -> None:
    # Return 1, clip 0.2. Old 0, now 0.5: max(0.25, (0.2 - 1)^2 = 0.64) / 2. Old 0.9, now 0.8, not clipped: 0.04 / 2.
    values = torch.tensor([0.5, 0.8], requires_grad=True)
    loss, clipped = value_loss(values, torch.tensor([0.0, 0.9]), torch.ones(2), 0.2)
    assert loss.tolist() == pytest.approx([0.32, 0.02])
    assert clipped.tolist() == [True, False]
    loss.sum().backward()
    assert values.grad is not None
    assert values.grad.tolist() == pytest.approx([0.0, -0.2])
    plain, clipped = value_loss(values, torch.zeros(2), torch.ones(2), None)
    assert plain.tolist() == pytest.approx([0.125, 0.02])
    assert not clipped.any()
