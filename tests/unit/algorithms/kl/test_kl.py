"""The simple divergence estimators, by hand (tolerance 1e-6); k3 has a file of its own."""

from __future__ import annotations

import math

import pytest
import torch

from rlsys.algorithms.kl import registry

LOGPROBS = [math.log(0.5), math.log(0.1), math.log(0.2)]
REFERENCE = [math.log(0.25), math.log(0.2), math.log(0.2)]
LN2 = math.log(2)


@pytest.mark.parametrize(
    ("name", "values", "gradient"),
    [
        ("k1", [LN2, -LN2, 0.0], [1.0, 1.0, 1.0]),
        ("k2", [LN2**2 / 2, LN2**2 / 2, 0.0], [LN2, -LN2, 0.0]),
        ("k3", [0.5 + LN2 - 1, 2 - LN2 - 1, 0.0], [0.5, -1.0, 0.0]),
        ("abs", [LN2, LN2, 0.0], [1.0, -1.0, 0.0]),
    ],
)
def test_values_and_gradients(name: str, values: list[float], gradient: list[float]) -> None:
    logprobs = torch.tensor(LOGPROBS, dtype=torch.float64, requires_grad=True)
    found = registry.get(name)(logprobs, torch.tensor(REFERENCE, dtype=torch.float64))
    assert found.tolist() == pytest.approx(values, abs=1e-12)
    assert torch.autograd.grad(found.sum(), logprobs)[0].tolist() == pytest.approx(gradient, abs=1e-12)


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("distance", [30.0, -30.0])
def test_far_apart_they_stay_finite(name: str, distance: float) -> None:
    logprobs = torch.tensor([-1.0], requires_grad=True)
    found = registry.get(name)(logprobs, torch.tensor([-1.0 + distance]))
    found.sum().backward()
    assert logprobs.grad is not None
    assert found.isfinite().all()
    assert logprobs.grad.isfinite().all()


@pytest.mark.parametrize("name", ["k1", "k3"])
def test_the_expectation_under_the_policy_is_the_divergence(name: str) -> None:
    policy = torch.softmax(torch.linspace(0, 2, 7, dtype=torch.float64), 0)
    reference = torch.softmax(torch.linspace(1, 0, 7, dtype=torch.float64), 0)
    exact = (policy * (policy / reference).log()).sum()
    found = (policy * registry.get(name)(policy.log(), reference.log())).sum()
    assert found.item() == pytest.approx(exact.item(), rel=1e-9)
