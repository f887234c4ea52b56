"""Corrections against numbers worked by hand (relative tolerance 1e-6), and against TRL where it has the function."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from rlsys.algorithms.corrections import registry
from rlsys.algorithms.inputs import LossInputs

LOG2 = math.log(2)


def inputs(ratios: list[list[float]], advantages: list[float] | None = None, lengths: list[int] | None = None) -> Any:
    """Old over behavior log-probabilities as given, behavior at -2, the policy where it was before the step."""
    difference = torch.tensor(ratios, dtype=torch.float64)
    widths = torch.tensor([difference.shape[1]] * len(ratios) if lengths is None else lengths)
    mask = torch.arange(difference.shape[1])[None] < widths[:, None]
    behavior = torch.full_like(difference, -2.0)
    signs = torch.tensor([1.0] * len(ratios) if advantages is None else advantages, dtype=torch.float64)
    old = behavior + difference
    return LossInputs(old, old, signs[:, None].expand(difference.shape), mask, behavior_logprobs=behavior)


@pytest.mark.parametrize(
    ("name", "options", "expected"),
    [
        # Ratios 2, 4 and 1/2: product 4, geometric mean 4^(1/3).
        ("truncate", {}, [2, 2, 0.5]),
        ("truncate", {"high": 3.0, "low": 1.0}, [2, 3, 1]),
        ("truncate", {"level": "sequence", "high": 3.0}, [3, 3, 3]),
        ("truncate", {"level": "geometric"}, [4 ** (1 / 3)] * 3),
        ("mask", {"high": 3.0}, [2, 0, 0.5]),
        ("mask", {"high": 3.0, "low": 0.75}, [2, 0, 0]),
        ("mask", {"level": "sequence"}, [4, 4, 4]),
        ("mask", {"level": "sequence", "high": 3.0}, [0, 0, 0]),
        ("mask", {"level": "geometric", "low": 1.0}, [4 ** (1 / 3)] * 3),
        ("mask", {"level": "geometric", "high": 1.0, "weigh": False}, [0, 0, 0]),
        ("mask", {"high": 3.0, "low": 0.75, "weigh": False}, [1, 0, 0]),
        ("decoupled", {}, [2, 4, 0.5]),
        ("decoupled", {"cap": 3.0}, [2, 0, 0.5]),
    ],
)
def test_weights_by_hand(name: str, options: dict[str, Any], expected: list[float]) -> None:
    weights = registry.bind(name, options)(inputs([[LOG2, 2 * LOG2, -LOG2]]))
    assert weights.tolist()[0] == pytest.approx(expected)


@pytest.mark.parametrize("level", ["sequence", "geometric"])
def test_the_response_s_ratio_is_that_of_its_trained_tokens(level: str) -> None:
    weights = registry.bind("truncate", {"level": level})(inputs([[LOG2 / 2, 50.0]], lengths=[1]))
    assert weights[0, 0].item() == pytest.approx(math.sqrt(2))


def test_opsm_by_hand() -> None:
    # Moved away by 0.2 on average: kept with a positive advantage, dropped with a negative one. By 0.05: kept.
    weights = registry.get("opsm")(inputs([[-0.3, -0.1], [-0.3, -0.1], [-0.1, 0.0]], advantages=[1, -1, -1]))
    assert weights.tolist() == [[1, 1], [0, 0], [1, 1]]


def test_opsm_is_trl_s() -> None:
    """TRL: GRPOTrainer.get_off_policy_mask."""
    trl = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL comes with the dev extra")
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        given = inputs(
            (torch.randn(5, 4, generator=generator) * 0.2).tolist(),
            torch.randn(5, generator=generator).tolist(),
            torch.randint(0, 5, (5,), generator=generator).tolist(),
        )
        theirs = trl.GRPOTrainer.get_off_policy_mask(
            given.advantages[:, :1], given.logprobs, given.behavior_logprobs, given.loss_mask.double(), 0.05
        )
        ours = registry.bind("opsm", {"threshold": 0.05})(given)
        assert torch.equal(ours, theirs.expand_as(ours))


@pytest.mark.parametrize("name", registry.names())
@pytest.mark.parametrize("exponent", [0.0, 30.0, -30.0, 500.0, -500.0])
def test_weights_are_finite_and_1_where_nothing_differs(name: str, exponent: float) -> None:
    weights = registry.get(name)(inputs([[exponent, 0.0], [0.0, 0.0]]))
    assert weights.float().isfinite().all()
    assert weights[1].tolist() == [1.0, 1.0]
