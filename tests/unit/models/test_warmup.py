"""The warm-up ends at the target, however far a step overshoots it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from rlsys.config.build_schema import Warmup
from rlsys.models import warmup
from rlsys.models.warmup import MAX_OVERSHOOT, greedy_accuracy, land_on_target, warm_up
from tests.unit.models.test_tiny import make_model

NUM_EXAMPLES = 200


def one_weight(value: float) -> nn.Module:
    """A model whose only weight decides its accuracy."""
    model = nn.Linear(1, 1, bias=False)
    nn.init.constant_(model.weight, value)
    return model


@given(st.lists(st.floats(0.001, 1.0), min_size=NUM_EXAMPLES, max_size=NUM_EXAMPLES), st.floats(0.05, 0.95))
def test_it_lands_just_above_the_target(thresholds: list[float], target: float) -> None:
    """An example is right from some point of the way on; examples may share a point."""

    def accuracy_at(weight: float) -> float:
        return sum(weight >= threshold for threshold in thresholds) / NUM_EXAMPLES

    model = one_weight(1.0)
    found = land_on_target(model, [torch.zeros(1, 1)], lambda: accuracy_at(model.weight.item()), 1.0, target)
    assert found == accuracy_at(model.weight.item())  # the model has the weights that were measured
    # No weight reaches the target with a smaller accuracy.
    lowest = min(a for t in thresholds if (a := accuracy_at(np.float32(t).item() + 1e-6)) >= target)
    assert target <= found <= max(lowest, target + MAX_OVERSHOOT)


def test_an_accuracy_that_goes_up_and_down_still_ends_above_the_target() -> None:
    model = one_weight(1.0)
    found = land_on_target(model, [torch.zeros(1, 1)], lambda: abs(np.sin(20 * model.weight.item())), 0.91, 0.5)
    assert 0.5 <= found <= 0.5 + MAX_OVERSHOOT
    assert found == pytest.approx(abs(np.sin(20 * model.weight.item())))


def test_within_the_accepted_overshoot_the_weights_stay_as_they_are() -> None:
    model = one_weight(0.75)

    def measure() -> float:
        raise AssertionError("measured without need")

    assert land_on_target(model, [torch.zeros(1, 1)], measure, 0.45, 0.44) == 0.45
    assert model.weight.item() == 0.75


def test_a_jump_of_the_accuracy_is_landed_on_its_upper_side() -> None:
    """With one held-out example there is nothing between 0 and 1."""
    model = one_weight(1.0)
    found = land_on_target(model, [torch.zeros(1, 1)], lambda: float(model.weight.item() >= 0.3), 1.0, 0.44)
    assert found == 1.0
    assert model.weight.item() == pytest.approx(0.3, abs=1e-6)


def examples(tokenizer: Any) -> list[tuple[np.ndarray, np.ndarray]]:
    pairs = [(f"{a}+{b}=", str(a + b)) for a in range(6) for b in range(6)]
    return [(np.array(tokenizer(p)["input_ids"]), np.array([*tokenizer(a)["input_ids"], 1])) for p, a in pairs]


@pytest.mark.parametrize("check_every", [7, 40])
def test_a_model_ends_at_the_target_whatever_the_distance_of_checks(tokenizer: Any, check_every: int) -> None:
    """Sums of small numbers are learned by heart in a few dozen steps, through every accuracy."""
    model, given_examples = make_model(tokenizer), examples(tokenizer)
    config = Warmup(max_steps=400, target_accuracy=0.5, batch_size=36, lr=3e-3, check_every=check_every)
    accuracy = warm_up(model, given_examples, given_examples, config, seed=0)
    assert 0.5 <= accuracy <= 0.5 + MAX_OVERSHOOT + 1 / len(given_examples)
    assert greedy_accuracy(model, given_examples) == accuracy
    assert not model.training


def test_the_steps_end_at_their_maximum(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last weights are measured, also between two checks."""
    measured: list[float] = []
    monkeypatch.setattr(warmup, "greedy_accuracy", lambda *_: measured.append(0.1 * len(measured)) or measured[-1])
    model, given_examples = make_model(tokenizer), examples(tokenizer)
    config = Warmup(max_steps=5, target_accuracy=0.9, batch_size=2, check_every=2)
    assert warm_up(model, given_examples, given_examples, config, seed=0) == pytest.approx(0.3)
    assert len(measured) == 4  # before the first step, and after steps 2, 4 and 5


def test_the_number_of_threads_is_restored(tokenizer: Any) -> None:
    before = torch.get_num_threads()
    seen: list[int] = []
    model, given_examples = make_model(tokenizer), examples(tokenizer)
    model.register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
    config = Warmup(max_steps=1, batch_size=2, check_every=1)
    warm_up(model, given_examples, given_examples, config, seed=0)
    assert set(seen) == {1}
    assert torch.get_num_threads() == before
