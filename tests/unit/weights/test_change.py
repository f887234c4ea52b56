"""Stale weights and skipped layers show in what a fixed text's log-probabilities change by, on small real models."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch

from rlsys.weights.change import EngineChange, Scored
from tests.unit.models.test_tiny import make_model

TEXT = torch.arange(5, 45)[None]
LR = 1e-6


class Sides:
    """A tied model that is trained, and an engine with another attention kernel, so that the two round differently."""

    def __init__(self, tokenizer: Any, dtype: torch.dtype) -> None:
        model = make_model(tokenizer, num_layers=4)
        self.learner = copy.deepcopy(model).to(dtype)
        self.learner.set_attn_implementation("eager")
        # Its output layer is a copy, as the packed one of an engine on CPUs.
        self.engine = copy.deepcopy(model).to(dtype)
        self.engine.set_attn_implementation("sdpa")
        self.engine.lm_head.weight = torch.nn.Parameter(self.learner.lm_head.weight.detach().clone())
        self._masters = {name: p.detach().float().clone() for name, p in self.learner.named_parameters()}
        self._change = EngineChange("float32" if dtype == torch.float32 else "bfloat16")
        self._version = 0

    def step(self, lr: float = LR) -> None:
        """One step as Adam's first ones: every weight moves by the learning rate."""
        logits = self.learner(TEXT).logits
        self.learner.zero_grad()
        logits.float().log_softmax(-1)[0, :-1].gather(1, TEXT[0, 1:, None]).mean().backward()
        with torch.no_grad():
            for name, parameter in self.learner.named_parameters():
                self._masters[name] += lr * parameter.grad.float().sign()
                parameter.copy_(self._masters[name])

    def broadcast(self, left_out: str = "nothing") -> str | None:
        """Copy the weights to the engine, all but some, and return the judgement."""
        source = dict(self.learner.named_parameters())
        source["lm_head.weight"] = source["model.embed_tokens.weight"]
        with torch.no_grad():
            for name, parameter in self.engine.named_parameters():
                if left_out not in name:
                    parameter.copy_(source[name])
        found = Scored(self._version, self._scores(self.learner), self._scores(self.engine))
        self._version += 1
        return self._change.judge(found)

    @staticmethod
    def _scores(model: Any) -> np.ndarray:
        with torch.no_grad():
            scores = model(TEXT).logits.float().log_softmax(-1)[0, :-1].gather(1, TEXT[0, 1:, None])
        return scores[:, 0].numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("lr", [1e-6, 1e-3])
def test_a_healthy_engine_is_accepted_for_many_steps(tokenizer: Any, dtype: torch.dtype, lr: float) -> None:
    sides = Sides(tokenizer, dtype)
    assert sides.broadcast() is None
    for _ in range(20):
        sides.step(lr)
        assert sides.broadcast() is None


@pytest.mark.parametrize(
    ("left_out", "words"),
    [
        ("", "it still computes with older weights"),
        ("layers.2.", "it does not use all of the weights it received"),
        ("mlp.down_proj", "it does not use all of the weights it received"),
        ("lm_head", "it does not use all of the weights it received"),
    ],
)
def test_one_step_at_a_rate_of_1e_6_shows_in_float32(tokenizer: Any, left_out: str, words: str) -> None:
    sides = Sides(tokenizer, torch.float32)
    assert sides.broadcast() is None
    sides.step()
    assert sides.broadcast() is None
    sides.step()
    problem = sides.broadcast(left_out)
    assert problem is not None
    assert words in problem
    assert "since version 1 " in problem


@pytest.mark.parametrize("left_out", ["", "lm_head"])
def test_in_bfloat16_a_change_shows_when_it_is_larger_than_rounding(tokenizer: Any, left_out: str) -> None:
    sides = Sides(tokenizer, torch.bfloat16)
    assert sides.broadcast() is None
    sides.step(LR)
    assert sides.broadcast(left_out) is None  # nothing follows: the sums of the bytes must show it
    for _ in range(5):
        sides.step(1e-2)
    assert sides.broadcast(left_out) is not None


def test_small_faults_add_up_to_one_that_shows(tokenizer: Any) -> None:
    sides = Sides(tokenizer, torch.float32)
    assert sides.broadcast() is None
    problems = []
    for _ in range(60):
        sides.step(3e-9)
        problems.append(sides.broadcast(""))
    assert problems[0] is None
    assert "since version 0 " in next(problem for problem in problems if problem is not None)


def test_another_model_is_found_at_the_first_version(tokenizer: Any) -> None:
    sides = Sides(tokenizer, torch.float32)
    with torch.no_grad():
        for parameter in sides.engine.parameters():
            parameter.add_(0.2 * torch.randn_like(parameter))
    assert "engine and learner compute different models" in str(sides.broadcast(""))


def test_what_is_not_finite_is_found() -> None:
    change = EngineChange("float32")
    good = np.zeros(4)
    assert change.judge(Scored(0, good, good)) is None
    assert "not finite" in str(change.judge(Scored(1, good, np.array([0.0, np.nan, 0.0, 0.0]))))
    assert "not finite" in str(EngineChange("float32").judge(Scored(0, good, good + np.inf)))
