"""The whole loss of one microbatch (by hand: relative tolerance 1e-5)."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.algorithms import policy_losses
from rlsys.algorithms.inputs import LossInputs
from rlsys.algorithms.loss import LossResult, Objective
from rlsys.config.algorithm_schema import AlgorithmConfig, KlConfig
from rlsys.errors import ConfigError
from rlsys.types import Coefficients

QUARTER = 0.25
"""What a token weighs here: a mean over four."""


TENTH = Coefficients(kl=0.1, entropy=0.0)


def objective(coef: float = 0.1, corrections: tuple[Any, ...] = (), kl: Any = None, **clip: float) -> Objective:
    policy_loss = {"name": "ppo_clip", **clip}
    penalty = KlConfig(coef, **(kl or {}))
    return Objective(AlgorithmConfig(policy_loss=policy_loss, corrections=list(corrections), kl=penalty))


def random_inputs(spread: float = 0.5) -> LossInputs:
    """Two rows of five tokens; the first two tokens are prompts, and row 1 ends one token early."""
    generator = torch.Generator().manual_seed(3)
    draw = [spread * torch.randn(2, 5, generator=generator) for _ in range(5)]
    mask = torch.tensor([[False, False, True, True, True], [False, False, True, True, False]])
    return LossInputs((draw[0] - 1).requires_grad_(), draw[1] - 1, draw[2], mask, draw[3] - 1, draw[4] - 1)


def run(loss: Objective, inputs: LossInputs, coefficients: Coefficients = TENTH) -> tuple[LossResult, torch.Tensor]:
    inputs.logprobs.grad = None
    weights = torch.full((len(inputs.logprobs),), QUARTER)
    result = loss(inputs, weights, coefficients, num_tokens=4)
    result.loss.backward()
    assert inputs.logprobs.grad is not None
    return result, inputs.logprobs.grad


def by_hand() -> LossInputs:
    """Token 0 is the prompt's; ratios 1.5 and 0.9; the reference is twice and half the policy."""
    return LossInputs(
        logprobs=torch.log(torch.tensor([[0.3, 0.3, 0.36]])).requires_grad_(),
        old_logprobs=torch.log(torch.tensor([[0.9, 0.2, 0.4]])),
        advantages=torch.ones(1, 3),
        loss_mask=torch.tensor([[False, True, True]]),
        ref_logprobs=torch.log(torch.tensor([[0.1, 0.6, 0.18]])),
        behavior_logprobs=torch.log(torch.tensor([[0.9, 0.1, 0.4]])),
    )


def test_two_tokens_with_kl_by_hand() -> None:
    # Token 1: ratio 1.5, A = 1, clipped at 1.2: loss -1.2. Reference twice the policy: k3 = 2 - ln 2 - 1 = 0.30685.
    # Token 2: ratio 0.9, A = 1: loss -0.9. Reference half the policy: k3 = 0.5 + ln 2 - 1 = 0.19315.
    # Loss: (-1.2 - 0.9 + 0.1 * (0.30685 + 0.19315)) / 4 = -2.05 / 4 = -0.5125.
    result, _ = run(objective(), by_hand())
    assert result.loss.item() == pytest.approx(-0.5125, rel=1e-5)
    assert result.sums["kl"].item() == pytest.approx(0.5, rel=1e-5)
    assert result.sums["clipped"].item() == 1
    assert result.sums["loss"].item() == result.loss.item()


def test_the_coefficient_is_the_step_s_own() -> None:
    result, _ = run(objective(), by_hand(), Coefficients(kl=1.0, entropy=0.0))
    assert result.loss.item() == pytest.approx((-2.1 + 0.5) / 4, rel=1e-5)


def test_a_kl_in_the_reward_is_measured_but_not_in_the_loss() -> None:
    result, _ = run(objective(kl={"apply_to": "reward"}), by_hand())
    assert result.loss.item() == pytest.approx(-2.1 / 4, rel=1e-5)
    assert result.sums["kl"].item() == pytest.approx(0.5, rel=1e-5)


def test_an_unbiased_kl_is_weighed_by_the_ratio() -> None:
    # 1.5 * 0.30685 + 0.9 * 0.19315 = 0.63411
    result, _ = run(objective(kl={"unbiased": True}), by_hand())
    assert result.sums["kl"].item() == pytest.approx(0.63411, rel=1e-4)


def test_unbiased_k3_has_the_gradient_of_the_kl() -> None:
    """In expectation over tokens drawn from the old policy: d/d logits of sum p log(p / q), to 1e-6."""
    logits = torch.randn(6, generator=torch.Generator().manual_seed(1), dtype=torch.float64).requires_grad_()
    old = torch.log_softmax(torch.linspace(0, 1, 6, dtype=torch.float64), 0)
    reference = torch.log_softmax(torch.linspace(2, 0, 6, dtype=torch.float64), 0)
    logprobs = torch.log_softmax(logits, 0)
    expected = torch.autograd.grad((logprobs.exp() * (logprobs - reference)).sum(), logits, retain_graph=True)[0]
    every = LossInputs(
        logprobs[None], old[None], torch.zeros(1, 6), torch.ones(1, 6, dtype=torch.bool), reference[None]
    )
    loss = objective(coef=1.0, kl={"unbiased": True})
    each = [loss(_token(every, t), torch.ones(1), Coefficients(1.0, 0.0), 1).loss for t in range(6)]
    found = torch.autograd.grad(sum(p * value for p, value in zip(old.exp(), each, strict=True)), logits)[0]
    assert torch.allclose(found, expected, atol=1e-6)


def _token(inputs: LossInputs, t: int) -> LossInputs:
    at = slice(t, t + 1)
    assert inputs.ref_logprobs is not None
    return LossInputs(
        inputs.logprobs[:, at], inputs.old_logprobs[:, at], inputs.advantages[:, at], inputs.loss_mask[:, at],
        inputs.ref_logprobs[:, at],
    )  # fmt: skip


def test_corrections_multiply_the_policy_term_alone_and_are_counted() -> None:
    # Old over behavior: 2 and 1. Truncated at 1.5 and masked above 1.8: weights 0 and 1, so token 2 is left.
    nodes = ({"name": "truncate", "high": 1.5}, {"name": "mask", "high": 1.8, "weigh": False})
    result, gradient = run(objective(coef=0.0, corrections=nodes), by_hand())
    assert result.loss.item() == pytest.approx(-0.9 / 4, rel=1e-5)
    assert gradient[0].tolist() == pytest.approx([0.0, 0.0, -0.9 / 4], rel=1e-5)
    sums = {name: value.item() for name, value in result.sums.items()}
    assert sums["ratio"] == pytest.approx(3.0)
    assert (sums["weight"], sums["weight_squares"], sums["weight_zeros"]) == (pytest.approx(1), pytest.approx(1), 1)
    assert result.largest["ratio"].item() == pytest.approx(2.0)
    penalised, _ = run(objective(coef=0.1, corrections=nodes), by_hand())
    assert penalised.loss.item() == pytest.approx((-0.9 + 0.05) / 4, rel=1e-5)  # the KL of both tokens stays


def test_an_entropy_bonus_is_a_mean_over_all_tokens_of_the_update() -> None:
    entropy = torch.tensor([[5.0, 0.4, 0.8]], requires_grad=True)
    inputs = replace(by_hand(), entropy=entropy)
    result, _ = run(objective(coef=0.0), inputs, Coefficients(0.0, entropy=0.5))
    assert result.loss.item() == pytest.approx(-2.1 / 4 - 0.5 * 1.2 / 4, rel=1e-5)
    assert entropy.grad is not None
    assert entropy.grad[0].tolist() == pytest.approx([0.0, -0.125, -0.125])
    assert result.sums["entropy"].item() == pytest.approx(1.2)


def test_tokens_of_low_entropy_leave_the_policy_gradient_but_not_the_kl() -> None:
    inputs = replace(by_hand(), high_entropy=torch.tensor([[False, False, True]]))
    result, _ = run(objective(), inputs)
    assert result.loss.item() == pytest.approx((-0.9 + 0.05) / 4, rel=1e-5)


def test_a_kl_without_a_reference_is_refused() -> None:
    with pytest.raises(ValueError, match="reference"):
        run(objective(coef=0.1), replace(random_inputs(), ref_logprobs=None))


VARIANTS: dict[str, Any] = {
    "plain": {},
    "corrected": {"corrections": ({"name": "truncate"}, {"name": "opsm"})},
    "unbiased": {"kl": {"unbiased": True}},
}
EACH = pytest.mark.parametrize("variant", VARIANTS.values(), ids=list(VARIANTS))


@EACH
def test_masked_tokens_get_exactly_no_gradient(variant: Any) -> None:
    inputs = random_inputs()
    _, gradient = run(objective(**variant), inputs)
    assert torch.equal(gradient[~inputs.loss_mask], torch.zeros(5))
    assert (gradient[inputs.loss_mask] != 0).all()


@EACH
def test_padding_changes_nothing(variant: Any) -> None:
    inputs = random_inputs()
    result, gradient = run(objective(**variant), inputs)
    names = ("logprobs", "old_logprobs", "advantages", "loss_mask", "ref_logprobs", "behavior_logprobs")
    # Three more columns, one more row.
    wider = {name: F.pad(getattr(inputs, name).detach(), (0, 3, 0, 1)) for name in names}
    padded = LossInputs(**{**wider, "logprobs": wider["logprobs"].requires_grad_()})
    padded_result, padded_gradient = run(objective(**variant), padded)
    assert padded_result.loss.item() == pytest.approx(result.loss.item(), abs=1e-7)
    assert torch.allclose(padded_gradient[:2, :5], gradient, atol=1e-7)
    for name, value in result.sums.items():
        assert padded_result.sums[name].item() == pytest.approx(value.item(), abs=1e-6), name


@EACH
def test_what_stands_outside_the_mask_is_not_read(variant: Any) -> None:
    inputs = random_inputs()
    expected, gradient = run(objective(**variant), inputs)
    names = ("old_logprobs", "advantages", "ref_logprobs", "behavior_logprobs")
    spoiled = replace(
        inputs,
        **{n: torch.where(inputs.loss_mask, getattr(inputs, n), torch.nan) for n in names},
    )
    found, spoiled_gradient = run(objective(**variant), spoiled)
    assert found.loss.item() == expected.loss.item()
    assert torch.equal(spoiled_gradient, gradient)


@pytest.mark.parametrize(
    ("kind", "distance"),  # e^70 is a float32, e^200 is not; a ratio of e^30 times a divergence of e^30 is one
    [("plain", 70.0), ("plain", 200.0), ("corrected", 70.0), ("corrected", 200.0), ("unbiased", 30.0)],
)
def test_far_apart_logprobs_stay_finite_masked_or_not(kind: str, distance: float) -> None:
    inputs = random_inputs(spread=0.0)
    signs = torch.tensor([[1.0, -1.0, 1.0, -1.0, 1.0], [-1.0, 1.0, -1.0, 1.0, -1.0]])
    apart = distance * signs
    behavior = inputs.old_logprobs - apart
    far = LossInputs(inputs.logprobs, inputs.old_logprobs + apart, 1 - apart, inputs.loss_mask, apart - 1, behavior)
    result, gradient = run(objective(**VARIANTS[kind]), far)
    assert math.isfinite(result.loss.item())
    assert math.isfinite(result.sums["kl"].item())
    assert torch.isfinite(gradient).all()
    assert torch.equal(gradient[~inputs.loss_mask], torch.zeros(5))


def test_options_reach_the_policy_loss() -> None:
    # ratio 1.5, A = 1: clipped at 1 + clip_high
    one = torch.ones(1, 1)
    inputs = LossInputs(torch.log(1.5 * one), 0 * one, one, one.bool())
    result = objective(coef=0.0, clip_high=0.28)(inputs, torch.ones(1), Coefficients(0.0, 0.0), 1)
    assert result.loss.item() == pytest.approx(-1.28)


def test_an_unknown_estimator_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"KL estimator 'k9'.*k3"):
        Objective(AlgorithmConfig(kl=KlConfig(name="k9")))


def test_a_selection_gets_the_loss_s_own_options() -> None:
    loss = Objective(AlgorithmConfig(policy_loss={"name": "kl_cov", "ratio": 0.5, "coef": 2.0}))
    assert loss.selects is not None
    assert loss.selects.keywords == {"ratio": 0.5}  # type: ignore[attr-defined]


LOSSES = policy_losses.registry.names()


@st.composite
def splits(draw: st.DrawFn) -> tuple[int, list[int]]:
    """A seed, and the part that each of five rows goes to."""
    return draw(st.integers(0, 10_000)), draw(st.lists(st.integers(0, 2), min_size=5, max_size=5))


@pytest.mark.parametrize("name", LOSSES)
@given(case=splits())
@settings(max_examples=20, deadline=None)
def test_any_split_into_microbatches_and_ranks_adds_up_to_the_whole(name: str, case: tuple[int, list[int]]) -> None:
    """Values and gradients, with corrections, KL and entropy bonus (absolute tolerance 1e-9)."""
    seed, part_of = case
    generator = torch.Generator().manual_seed(seed)
    draw = [torch.randn(5, 4, generator=generator, dtype=torch.float64) for _ in range(6)]
    lengths = torch.randint(0, 5, (5,), generator=generator)
    mask = torch.arange(4)[None] < lengths[:, None]
    logprobs = draw[0].requires_grad_()
    whole = LossInputs(logprobs, draw[0].detach() + 0.2 * draw[1], draw[2], mask, draw[3], draw[4], draw[5].abs(), mask)
    config = AlgorithmConfig(
        policy_loss={"name": name}, corrections=[{"name": "truncate", "level": "geometric"}], kl=KlConfig(0.1)
    )
    loss, weights = Objective(config), torch.rand(5, generator=generator, dtype=torch.float64)
    rows = [torch.tensor([i for i in range(5) if part_of[i] == part], dtype=torch.int64) for part in range(3)]
    given_to = [torch.arange(5)], rows
    found = []
    for parts in given_to:
        results = [
            loss(_rows(whole, part), weights[part], Coefficients(0.1, 0.01), int(lengths.sum()))
            for part in parts
            if len(part)
        ]
        value = torch.stack([result.loss for result in results]).sum()
        sums = {key: sum(float(result.sums[key]) for result in results) for key in results[0].sums}
        found.append((value, torch.autograd.grad(value, logprobs, retain_graph=True)[0], sums))
    assert torch.allclose(found[0][0], found[1][0], atol=1e-9)
    assert torch.allclose(found[0][1], found[1][1], atol=1e-9)
    assert found[0][2] == pytest.approx(found[1][2], abs=1e-9)


def _rows(inputs: LossInputs, rows: torch.Tensor) -> LossInputs:
    values = {field.name: getattr(inputs, field.name) for field in fields(LossInputs)}
    return LossInputs(**{name: value if value is None else value[rows] for name, value in values.items()})
