"""The k3 estimator of the KL divergence."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsys.algorithms.kl.k3 import k3

LOGPROBS = st.floats(-100.0, 0.0, width=32)


@pytest.mark.parametrize(
    ("policy", "reference", "expected"),
    [
        (0.5, 0.25, 0.5 - math.log(0.5) - 1),  # q/p = 1/2: 0.5 + 0.6931 - 1 = 0.1931
        (0.25, 0.5, 2.0 - math.log(2.0) - 1),  # q/p = 2: 2 - 0.6931 - 1 = 0.3069
        (0.9, 0.9, 0.0),
    ],
)
def test_by_hand(policy: float, reference: float, expected: float) -> None:
    result = k3(torch.tensor([math.log(policy)]), torch.tensor([math.log(reference)]))
    assert result.item() == pytest.approx(expected, abs=1e-6)


@given(LOGPROBS, LOGPROBS)
def test_never_negative_and_finite(policy: float, reference: float) -> None:
    value = k3(torch.tensor([policy]), torch.tensor([reference])).item()
    assert 0.0 <= value < math.inf


@given(st.floats(-30.0, 0.0, width=32), st.integers(-8, 8))
def test_never_negative_between_neighbouring_floats(logprob: float, steps: int) -> None:
    policy = torch.tensor([logprob])
    reference = policy.clone()
    for _ in range(abs(steps)):
        reference = torch.nextafter(reference, torch.tensor([math.copysign(math.inf, steps)]))
    assert k3(policy, reference).item() >= 0.0


@given(LOGPROBS)
def test_zero_with_zero_gradient_where_policy_and_reference_agree(logprob: float) -> None:
    policy = torch.tensor([logprob], requires_grad=True)
    value = k3(policy, torch.tensor([logprob]))
    value.sum().backward()
    assert value.item() == 0.0
    assert policy.grad.item() == 0.0


def test_its_expectation_under_the_policy_is_the_divergence() -> None:
    policy, reference = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.2, 0.2, 0.6])
    exact = (policy * (policy / reference).log()).sum()  # over all three outcomes
    assert (policy * k3(policy.log(), reference.log())).sum().item() == pytest.approx(exact.item(), rel=1e-5)


def test_the_gradient_by_hand() -> None:
    # d/dlogp (exp(q - p) - (q - p) - 1) = 1 - q/p; with q/p = 2 that is -1: the probability is to rise.
    policy = torch.tensor([math.log(0.25)], requires_grad=True)
    k3(policy, torch.tensor([math.log(0.5)])).sum().backward()
    assert policy.grad.item() == pytest.approx(-1.0, rel=1e-5)
