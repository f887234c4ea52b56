"""The optimizer's groups and options, without DeepSpeed."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import get_scheduler
from transformers.integrations import is_deepspeed_zero3_enabled

from rlsys.config.learner_schema import LearnerConfig, LoraConfig
from rlsys.learner.engine import NO_CLIPPING, _record_norm, divide_at_once, keep_options, parameter_groups
from rlsys.models.policy import load_policy
from rlsys.models.value import load_critic


def names(model: Any, group: dict[str, Any]) -> set[str]:
    by_id = {id(parameter): name for name, parameter in model.named_parameters()}
    return {by_id[id(parameter)] for parameter in group["params"]}


@pytest.mark.parametrize("load", [load_policy, load_critic])
def test_norms_and_biases_do_not_decay_unless_asked(model_folder: Path, load: Any) -> None:
    model = load(str(model_folder), torch.float32, max_tokens=64)
    matrices, others = parameter_groups(model, LearnerConfig(weight_decay=0.1))
    assert all("norm" not in name and "bias" not in name for name in names(model, matrices))
    assert all("norm" in name or "bias" in name for name in names(model, others))
    assert (matrices["weight_decay"], others["weight_decay"]) == (0.1, 0.0)
    assert names(model, matrices) | names(model, others) == {name for name, _ in model.named_parameters()}
    asked = parameter_groups(model, LearnerConfig(weight_decay=0.1, decay_norms_and_biases=True))
    assert [group["weight_decay"] for group in asked] == [0.1, 0.1]


def test_the_biases_of_experts_are_no_matrices() -> None:
    model = torch.nn.ParameterDict({"up_proj": torch.ones(2, 3, 4), "up_proj_bias": torch.ones(2, 3)})
    matrices, others = parameter_groups(model, LearnerConfig(weight_decay=0.1))
    assert (names(model, matrices), names(model, others)) == ({"up_proj"}, {"up_proj_bias"})


def test_adapters_are_matrices_alone(model_folder: Path) -> None:
    policy = load_policy(str(model_folder), torch.float32, max_tokens=64, lora=LoraConfig(rank=2))
    (group,) = parameter_groups(policy, LearnerConfig(weight_decay=0.1))
    assert all(".lora_" in name for name in names(policy, group))


def engine(config: LearnerConfig, num_updates: int) -> Any:
    """Return the part of a DeepSpeed engine that holds options."""
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(parameter_groups(model, config), lr=config.lr, betas=config.betas, eps=config.eps)
    schedule = get_scheduler("linear", optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=num_updates)
    return SimpleNamespace(module=model, optimizer=optimizer, lr_scheduler=schedule)


def step(given: Any) -> None:
    given.module(torch.ones(1, 2)).sum().backward()
    given.optimizer.step()
    given.lr_scheduler.step()


def test_a_checkpoint_brings_moments_and_position_but_not_options() -> None:
    before = engine(LearnerConfig(lr=1e-3), num_updates=10)
    for _ in range(4):
        step(before)
    wanted = LearnerConfig(lr=1e-4, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.1, warmup_steps=8)
    after = engine(wanted, num_updates=20)
    with keep_options(after):
        after.optimizer.load_state_dict(before.optimizer.state_dict())
        after.lr_scheduler.load_state_dict(before.lr_scheduler.state_dict())
    assert [group["weight_decay"] for group in after.optimizer.param_groups] == [0.1, 0.0]
    for group in after.optimizer.param_groups:
        assert (group["betas"], group["eps"], group["initial_lr"]) == ((0.8, 0.9), 1e-6, 1e-4)
        assert group["lr"] == pytest.approx(1e-4 * 4 / 8)  # four of eight updates of the new warm-up
    assert after.lr_scheduler.get_last_lr() == pytest.approx([1e-4 * 4 / 8] * 2)
    step(after)
    assert after.optimizer.param_groups[0]["lr"] == pytest.approx(1e-4 * 5 / 8)
    assert float(after.optimizer.state[after.module.weight]["step"]) == 5.0


@pytest.mark.parametrize(("stage", "divides"), [(1, False), (2, False), (3, True)])
def test_transformers_divides_what_it_loads_with_zero_3_alone(stage: int, divides: bool) -> None:
    assert not is_deepspeed_zero3_enabled()
    with divide_at_once(LearnerConfig(zero_stage=stage), 1):
        assert is_deepspeed_zero3_enabled() is divides
    assert not is_deepspeed_zero3_enabled()


def test_a_gradient_that_is_not_finite_is_reported_to_deepspeed() -> None:
    given = engine(LearnerConfig(), num_updates=10)
    _record_norm(given, NO_CLIPPING)
    for factor, refused in ((1.0, False), (float("nan"), True), (1.0, False)):
        given.module.zero_grad()
        (factor * given.module(torch.ones(1, 2)).sum()).backward()
        given.clip_fp32_gradients()
        assert given.optimizer.overflow is refused
