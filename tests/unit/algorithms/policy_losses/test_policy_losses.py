"""Every policy loss against numbers worked by hand (relative tolerance 1e-6), and what all have in common."""

from __future__ import annotations

import contextlib
import math
from typing import Any

import pytest
import torch

from rlsys.algorithms.inputs import LossInputs
from rlsys.algorithms.policy_losses import PolicyLoss, registry
from rlsys.errors import ConfigError

ALL = pytest.mark.parametrize("name", registry.names())
E = math.e


def run(
    name: str,
    log_ratios: list[list[float]],
    advantages: list[float],
    lengths: list[int] | None = None,
    selected: list[list[bool]] | None = None,
    **options: Any,
) -> tuple[PolicyLoss, torch.Tensor]:
    """The loss on rows of log ratios over old log-probabilities of -1, and the gradient of its masked sum."""
    ratios = torch.tensor(log_ratios, dtype=torch.float64)
    widths = torch.tensor([ratios.shape[1]] * len(ratios) if lengths is None else lengths)
    mask = torch.arange(ratios.shape[1])[None] < widths[:, None]
    logprobs = torch.where(mask, ratios - 1.0, 0.0).requires_grad_()
    old = torch.where(mask, torch.full_like(ratios, -1.0), 0.0)
    expanded = torch.tensor(advantages, dtype=torch.float64)[:, None].expand(ratios.shape)
    chosen = torch.zeros_like(mask) if selected is None else torch.tensor(selected)
    result = registry.bind(name, options)(LossInputs(logprobs, old, expanded, mask, selected=chosen))
    torch.where(mask, result.per_token, 0.0).sum().backward()
    assert logprobs.grad is not None
    return result, logprobs.grad


def test_reinforce_by_hand() -> None:
    result, gradient = run("reinforce", [[0.5, -0.5]], [2.0])
    assert result.per_token.tolist()[0] == pytest.approx([1.0, 3.0])  # -2 * (-0.5), -2 * (-1.5)
    assert gradient.tolist()[0] == [-2.0, -2.0]


def test_dual_clip_by_hand() -> None:
    # A < 0 and ratio 10: -min(3 * -1, 1.2 * -1) = 3 instead of 10, and no gradient.
    result, gradient = run("ppo_clip", [[math.log(10)]], [-1.0], dual_clip=3.0)
    assert (result.per_token.item(), result.clipped.item(), gradient.item()) == (pytest.approx(3.0), True, 0.0)
    result, _ = run("ppo_clip", [[math.log(2)]], [-1.0], dual_clip=3.0)
    assert (result.per_token.item(), result.clipped.item()) == (pytest.approx(2.0), False)


def test_gspo_by_hand() -> None:
    # Log ratios 0.0002 and 0.0004: s = e^0.0003, inside 1 + 4e-4. The second row's 0.1 is clipped at 1.0004.
    result, gradient = run("gspo", [[0.0002, 0.0004], [0.1, 0.1]], [1.0, 1.0])
    assert result.per_token.tolist()[0] == pytest.approx([-math.exp(0.0003)] * 2)
    assert result.per_token.tolist()[1] == pytest.approx([-1.0004] * 2)
    assert result.clipped.tolist() == [[False, False], [True, True]]
    # Each token moves the mean by half, and both tokens carry the response's value: 2 * 1/2 * s.
    assert gradient.tolist()[0] == pytest.approx([-math.exp(0.0003)] * 2)
    assert gradient.tolist()[1] == [0.0, 0.0]


def test_gspo_counts_the_tokens_of_the_response_alone() -> None:
    result, _ = run("gspo", [[0.0003, 99.0]], [1.0], lengths=[1])
    assert result.per_token.tolist()[0][0] == pytest.approx(-math.exp(0.0003))


def test_gspo_token_has_the_values_and_the_gradient_of_gspo() -> None:
    rows, advantages = [[0.0002, 0.0004, -0.0009], [0.1, 0.1, 0.2]], [1.0, -0.5]
    sequence, token = (run(name, rows, advantages) for name in ("gspo", "gspo_token"))
    torch.testing.assert_close(sequence[0].per_token, token[0].per_token)
    torch.testing.assert_close(sequence[1], token[1])


def test_cispo_by_hand() -> None:
    # Ratio 10 weighs 5, ratio e weighs e; the gradient is -weight * A, clipped or not.
    result, gradient = run("cispo", [[math.log(10), 1.0]], [2.0])
    assert gradient.tolist()[0] == pytest.approx([-10.0, -2 * E])
    assert result.per_token.tolist()[0] == pytest.approx([-10.0 * (math.log(10) - 1), 0.0], abs=1e-12)


def test_sapo_by_hand() -> None:
    # A > 0, tau 1: 4 * sigmoid(ratio - 1); ratio 1 gives 2. A <= 0, tau 1.05: sigmoid(1.05 * (2 - 1)) * 4 / 1.05.
    result, _ = run("sapo", [[0.0], [math.log(2)]], [1.0, -1.0])
    assert result.per_token.tolist()[0] == pytest.approx([-2.0])
    assert result.per_token.tolist()[1] == pytest.approx([4 / 1.05 / (1 + math.exp(-1.05))])


def test_gmpo_by_hand() -> None:
    # A > 0 clips 0.8 to 0.4 and leaves -0.6: mean -0.1. A < 0 leaves 0.8 and clips -0.6 to -0.4: mean 0.2.
    result, gradient = run("gmpo", [[0.8, -0.6], [0.8, -0.6]], [1.0, -1.0])
    assert result.per_token.tolist()[0] == pytest.approx([-math.exp(-0.1)] * 2)
    assert result.per_token.tolist()[1] == pytest.approx([math.exp(0.2)] * 2)
    assert result.clipped.tolist() == [[True, False], [False, True]]
    assert (gradient != 0).tolist() == [[False, True], [True, False]]


def test_dppo_by_hand() -> None:
    # p_old = e^-1 = 0.368. Ratio e^0.5: p = 0.607, moved by 0.239 > 0.2. Ratio e^0.3: p = 0.497, moved by 0.129.
    result, gradient = run("dppo_tv", [[0.5, 0.3], [0.5, 0.3]], [1.0, -1.0])
    assert result.clipped.tolist() == [[True, False], [False, False]]  # A < 0 pulls it back: not masked
    assert gradient.tolist()[0] == pytest.approx([0.0, -math.exp(0.3)])
    assert gradient.tolist()[1] == pytest.approx([math.exp(0.5), math.exp(0.3)])
    # KL: 0.368 * -0.5 + 0.632 * ln(0.632 / 0.393) = 0.116 > 0.05; 0.368 * -0.3 + 0.632 * ln(0.632 / 0.503) = 0.034.
    result, _ = run("dppo_kl", [[0.5, 0.3], [0.5, 0.3]], [1.0, -1.0])
    assert result.clipped.tolist() == [[True, False], [False, False]]


def test_clip_cov_by_hand() -> None:
    # Ratio e^0.1, A = 2: -2 e^0.1, except at the chosen token, which loses value and gradient.
    result, gradient = run("clip_cov", [[0.1, 0.1]], [2.0], selected=[[True, False]])
    assert result.per_token.tolist()[0] == pytest.approx([0.0, -2 * math.exp(0.1)])
    assert gradient.tolist()[0] == pytest.approx([0.0, -2 * math.exp(0.1)])
    assert result.clipped.tolist() == [[True, False]]


def test_kl_cov_by_hand() -> None:
    # On top of -2 e^0.1 the chosen token pays 0.5 * |0.1|.
    result, gradient = run("kl_cov", [[0.1, 0.1]], [2.0], selected=[[True, False]], coef=0.5)
    assert result.per_token.tolist()[0] == pytest.approx([-2 * math.exp(0.1) + 0.05, -2 * math.exp(0.1)])
    assert gradient.tolist()[0] == pytest.approx([-2 * math.exp(0.1) + 0.5, -2 * math.exp(0.1)])


@pytest.mark.parametrize(("high", "dual", "refused"), [(0.2, 1.1, True), (0.28, 1.28, True), (0.2, 3.0, False)])
def test_a_dual_clip_inside_the_first_one_is_refused(high: float, dual: float, refused: bool) -> None:
    check = registry.fact("ppo_clip", "check", None)
    with pytest.raises(ConfigError, match="must be above 1") if refused else contextlib.nullcontext():
        check(clip_high=high, dual_clip=dual)


@ALL
def test_on_policy_the_gradient_is_the_policy_gradient(name: str) -> None:
    """-A at every token (gspo and gmpo spread it over the response, where it comes to the same)."""
    _, gradient = run(name, [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]], [1.5, -0.5], lengths=[3, 2])
    expected = [[-1.5, -1.5, -1.5], [0.5, 0.5, 0.0]]
    assert gradient.tolist() == [pytest.approx(row, abs=1e-12) for row in expected]


@ALL
@pytest.mark.parametrize("exponent", [-30.0, 30.0, -300.0, 300.0])
@pytest.mark.parametrize("advantage", [-1.0, 0.0, 1.0])
def test_extreme_ratios_stay_finite(name: str, exponent: float, advantage: float) -> None:
    result, gradient = run(name, [[exponent, 0.0, -exponent]], [advantage])
    assert result.per_token.float().isfinite().all()
    assert gradient.float().isfinite().all()


@ALL
def test_masked_tokens_get_exactly_no_gradient(name: str) -> None:
    _, gradient = run(name, [[0.1, -0.1, 0.2], [0.3, 0.1, 0.1]], [1.0, -1.0], lengths=[1, 2])
    assert torch.equal(gradient[0, 1:], torch.zeros(2, dtype=torch.float64))
    assert gradient[1, 2] == 0.0


@ALL
def test_the_order_of_rows_does_not_matter(name: str) -> None:
    rows, advantages = [[0.1, -0.1], [0.0005, 0.0001], [-0.3, 0.6]], [1.0, -1.0, 0.5]
    straight, turned = run(name, rows, advantages), run(name, rows[::-1], advantages[::-1])
    assert torch.equal(straight[0].per_token, turned[0].per_token.flip(0))
    assert torch.equal(straight[1], turned[1].flip(0))
