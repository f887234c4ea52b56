"""The clipped surrogate."""

from __future__ import annotations

import math

import pytest
import torch

from rlsys.algorithms.inputs import LossInputs
from rlsys.algorithms.policy_losses import PolicyLoss
from rlsys.algorithms.policy_losses.ppo_clip import ppo_clip


def one_token(ratio: float, advantage: float, **options: float) -> tuple[float, bool, float]:
    """Loss, whether clipped, and the derivative by the log-probability, of one token."""
    logprobs = torch.tensor([[math.log(ratio)]], requires_grad=True)
    result = ppo_clip(inputs(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]])), **options)
    result.per_token.sum().backward()
    assert logprobs.grad is not None
    return result.per_token.item(), bool(result.clipped.item()), logprobs.grad.item()


def inputs(logprobs: torch.Tensor, old: torch.Tensor, advantages: torch.Tensor) -> LossInputs:
    return LossInputs(logprobs, old, advantages, torch.ones_like(advantages, dtype=torch.bool))


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "clipped", "gradient"),
    [
        # loss = -min(ratio * A, clip(ratio, 0.8, 1.2) * A); d ratio / d logprob = ratio
        (1.1, 2.0, -2.2, False, -2.2),  # inside: -1.1 * 2
        (1.1, -2.0, 2.2, False, 2.2),
        (1.5, 2.0, -2.4, True, 0.0),  # above, A > 0: min(3.0, 2.4) = 2.4, a constant
        (1.5, -2.0, 3.0, False, 3.0),  # above, A < 0: min(-3.0, -2.4) = -3.0, still pushed down
        (0.5, 2.0, -1.0, False, -1.0),  # below, A > 0: min(1.0, 1.6) = 1.0, still pushed up
        (0.5, -2.0, 1.6, True, 0.0),  # below, A < 0: min(-1.0, -1.6) = -1.6, a constant
    ],
)
def test_inside_above_and_below(ratio: float, advantage: float, loss: float, clipped: bool, gradient: float) -> None:
    assert one_token(ratio, advantage) == (pytest.approx(loss), clipped, pytest.approx(gradient))


def test_the_bounds_are_separate() -> None:
    assert one_token(1.5, 1.0, clip_low=0.2, clip_high=0.28)[0] == pytest.approx(-1.28)
    assert one_token(1.25, 1.0, clip_low=0.2, clip_high=0.28)[:2] == (pytest.approx(-1.25), False)
    assert one_token(0.5, -1.0, clip_low=0.1, clip_high=0.28)[0] == pytest.approx(0.9)


@pytest.mark.parametrize("advantage", [1.7, -1.7, 0.0])
def test_on_policy_the_ratio_is_one_and_the_gradient_minus_the_advantage(advantage: float) -> None:
    logprobs = (-3.0 * torch.rand(2, 5, generator=torch.Generator().manual_seed(0))).requires_grad_()
    advantages = torch.full((2, 5), advantage)
    result = ppo_clip(inputs(logprobs, logprobs.detach().clone(), advantages))
    result.per_token.sum().backward()
    assert torch.equal(result.per_token, -advantages)  # a ratio of exactly 1
    assert torch.equal(logprobs.grad, -advantages)
    assert not result.clipped.any()


@pytest.mark.parametrize("difference", [70.0, -70.0, 200.0, -200.0])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_far_off_policy_stays_finite(difference: float, advantage: float) -> None:
    logprobs = torch.tensor([[difference]], requires_grad=True)
    result: PolicyLoss = ppo_clip(inputs(logprobs, torch.zeros(1, 1), torch.tensor([[advantage]])))
    result.per_token.sum().backward()
    assert torch.isfinite(result.per_token).all()
    assert torch.isfinite(logprobs.grad).all()
