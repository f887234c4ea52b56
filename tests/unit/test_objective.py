"""The whole loss of one microbatch."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from rlsys.algorithms.loss import LossResult, Objective
from rlsys.algorithms.policy_losses import LossInputs
from rlsys.config import AlgorithmConfig, KlConfig
from rlsys.errors import ConfigError
from rlsys.types import LossTotals

TOTALS = LossTotals(num_tokens=4, num_trajectories=2)
AGGREGATIONS = pytest.mark.parametrize("aggregation", ["token_mean", "sequence_mean"])


def objective(coef: float = 0.1, aggregation: str = "token_mean", **clip: float) -> Objective:
    policy_loss = {"name": "ppo_clip", **clip}
    return Objective(AlgorithmConfig(policy_loss=policy_loss, aggregation={"name": aggregation}, kl=KlConfig(coef)))


def random_inputs(spread: float = 0.5) -> LossInputs:
    """Two rows of five tokens; the first two tokens are prompts, and row 1 ends one token early."""
    generator = torch.Generator().manual_seed(3)
    draw = [spread * torch.randn(2, 5, generator=generator) for _ in range(4)]
    mask = torch.tensor([[False, False, True, True, True], [False, False, True, True, False]])
    return LossInputs((draw[0] - 1).requires_grad_(), draw[1] - 1, draw[2], mask, draw[3] - 1)


def run(loss: Objective, inputs: LossInputs) -> tuple[LossResult, torch.Tensor]:
    inputs.logprobs.grad = None
    result = loss(inputs, TOTALS)
    result.loss.backward()
    assert inputs.logprobs.grad is not None
    return result, inputs.logprobs.grad


def test_two_tokens_with_kl_by_hand() -> None:
    # Token 1: ratio 1.5, A = 1, clipped at 1.2: loss -1.2. Reference twice the policy: k3 = 2 - ln 2 - 1 = 0.30685.
    # Token 2: ratio 0.9, A = 1: loss -0.9. Reference half the policy: k3 = 0.5 + ln 2 - 1 = 0.19315.
    # Token 0 is the prompt's.  Loss: (-1.2 - 0.9 + 0.1 * (0.30685 + 0.19315)) / 4 = -2.05 / 4 = -0.5125.
    logprobs = torch.log(torch.tensor([[0.3, 0.3, 0.36]]))
    inputs = LossInputs(
        logprobs=logprobs,
        old_logprobs=torch.log(torch.tensor([[0.9, 0.2, 0.4]])),
        advantages=torch.ones(1, 3),
        loss_mask=torch.tensor([[False, True, True]]),
        ref_logprobs=torch.log(torch.tensor([[0.1, 0.6, 0.18]])),
    )
    result = objective()(inputs, TOTALS)
    assert result.loss.item() == pytest.approx(-0.5125, rel=1e-5)
    assert result.kl_sum.item() == pytest.approx(0.5, rel=1e-5)  # 0.30685 + 0.19315
    assert result.clipped_sum.item() == 1


def test_a_kl_without_a_reference_is_refused() -> None:
    full = random_inputs()
    inputs = LossInputs(full.logprobs, full.old_logprobs, full.advantages, full.loss_mask)
    with pytest.raises(ValueError, match="reference"):
        run(objective(coef=0.1), inputs)


@AGGREGATIONS
def test_masked_tokens_get_exactly_no_gradient(aggregation: str) -> None:
    inputs = random_inputs()
    _, gradient = run(objective(aggregation=aggregation), inputs)
    assert torch.equal(gradient[~inputs.loss_mask], torch.zeros(5))
    assert (gradient[inputs.loss_mask] != 0).all()


@AGGREGATIONS
def test_padding_changes_nothing(aggregation: str) -> None:
    inputs = random_inputs()
    result, gradient = run(objective(aggregation=aggregation), inputs)

    def wider(values: torch.Tensor) -> torch.Tensor:
        return F.pad(values.detach(), (0, 3, 0, 1))  # three more columns, one more row

    padded = LossInputs(
        wider(inputs.logprobs).requires_grad_(),
        wider(inputs.old_logprobs),
        wider(inputs.advantages),
        wider(inputs.loss_mask),
        wider(inputs.ref_logprobs),
    )
    padded_result, padded_gradient = run(objective(aggregation=aggregation), padded)
    assert padded_result.loss.item() == pytest.approx(result.loss.item(), abs=1e-7)
    assert torch.allclose(padded_gradient[:2, :5], gradient, atol=1e-7)
    assert torch.equal(padded_result.clipped_sum, result.clipped_sum)


@AGGREGATIONS
@pytest.mark.parametrize("distance", [70.0, 200.0])  # e^70 is a float32, e^200 is not
def test_far_apart_logprobs_stay_finite_masked_or_not(aggregation: str, distance: float) -> None:
    inputs = random_inputs(spread=0.0)
    signs = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0], [-1.0, 1.0, -1.0, 1.0, -1.0]])
    apart = distance * signs
    far = LossInputs(inputs.logprobs, inputs.old_logprobs + apart, 1 - apart, inputs.loss_mask, apart - 1)
    result, gradient = run(objective(aggregation=aggregation), far)
    assert math.isfinite(result.loss.item())
    assert math.isfinite(result.kl_sum.item())
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient[~inputs.loss_mask], torch.zeros(5))


def test_options_reach_the_policy_loss() -> None:
    # ratio 1.5, A = 1: clipped at 1 + clip_high
    inputs = LossInputs(
        torch.log(torch.tensor([[1.5]])), torch.zeros(1, 1), torch.ones(1, 1), torch.ones(1, 1, dtype=torch.bool)
    )
    one = LossTotals(num_tokens=1, num_trajectories=1)
    assert objective(coef=0.0, clip_high=0.28)(inputs, one).loss.item() == pytest.approx(-1.28)


def test_an_unknown_estimator_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"KL estimator 'k9'.*k3"):
        Objective(AlgorithmConfig(kl=KlConfig(name="k9")))
