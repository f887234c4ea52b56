"""Values and gradients against TRL 1.16: the same tensors through `GRPOTrainer._compute_loss` and through ours.

TRL's method runs as it is, on a stand-in for the trainer that holds its settings and hands out our log-probabilities
instead of a model's.
"""

from __future__ import annotations

from collections import defaultdict
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlsys.algorithms import aggregation, policy_losses
from rlsys.algorithms.kl.k3 import k3
from rlsys.algorithms.policy_losses import LossInputs
from rlsys.types import LossTotals

trl_trainer = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL comes with the dev extra")

MAX_LENGTH = 9
CASES = range(200)


class Accelerator:
    """One process."""

    num_processes = 1
    sync_gradients = True

    def gather(self, values: torch.Tensor) -> torch.Tensor:
        return values

    def reduce(self, values: torch.Tensor, reduction: str) -> torch.Tensor:
        return values


def trainer(logprobs: torch.Tensor, **changes: Any) -> Any:
    """What `_compute_loss` reads of its trainer; TRL's defaults but for `changes`."""
    args = SimpleNamespace(
        use_bias_correction_kl=False, delta=None, sapo_temperature_pos=1.0, sapo_temperature_neg=1.05
    )
    settings = {
        "aux_loss_enabled": False,
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "importance_sampling_level": "token",
        "beta": 0.0,
        "loss_type": "grpo",
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "use_vllm": False,
        "vllm_importance_sampling_correction": False,
        "model": SimpleNamespace(training=True),
        "current_gradient_accumulation_steps": 1,
        "max_completion_length": MAX_LENGTH,
        "accelerator": Accelerator(),
        "_metrics": {"train": defaultdict(list)},
        "_entropy_bonus_enabled": False,
    }
    for name in ("delta", "use_bias_correction_kl"):
        if name in changes:
            setattr(args, name, changes.pop(name))
    args.steps_per_generation = 1
    stand_in = SimpleNamespace(args=args, **{**settings, **changes})
    stand_in._get_per_token_logps_and_entropies = lambda *_, **__: (logprobs, torch.zeros_like(logprobs), None)
    return stand_in


def theirs(inputs: LossInputs, num_tokens: int, **changes: Any) -> torch.Tensor:
    """`GRPOTrainer._compute_loss` on these tensors."""
    mask = inputs.loss_mask.to(inputs.logprobs.dtype)
    ids = torch.ones(mask.shape, dtype=torch.int64)
    batch = {
        "prompt_ids": ids[:, :1],
        "prompt_mask": ids[:, :1],
        "completion_ids": ids,
        "completion_mask": mask,
        "advantages": inputs.advantages[:, 0],
        "old_per_token_logps": inputs.old_logprobs,
        "ref_per_token_logps": inputs.ref_logprobs,
        "num_items_in_batch": torch.tensor(float(num_tokens)),
    }
    loss = trl_trainer.GRPOTrainer._compute_loss(trainer(inputs.logprobs, **changes), None, batch)
    assert isinstance(loss, torch.Tensor)
    return loss


def ours(inputs: LossInputs, loss: dict[str, Any], weighing: dict[str, Any], beta: float = 0.0) -> torch.Tensor:
    """The same through the registries."""
    per_token = policy_losses.registry.component(loss)(inputs).per_token
    if beta:
        assert inputs.ref_logprobs is not None
        per_token = per_token + beta * k3(inputs.logprobs, inputs.ref_logprobs)
    totals = LossTotals(num_tokens=int(inputs.loss_mask.sum()), num_trajectories=len(inputs.loss_mask))
    return aggregation.registry.component(weighing)(per_token, inputs.loss_mask, totals)


def random_inputs(seed: int) -> LossInputs:
    """Ragged responses, among them empty ones and ones of one token; ratios from e-30 to e30 in every third case."""
    generator = torch.Generator().manual_seed(seed)
    rows = int(torch.randint(1, 7, (1,), generator=generator))
    lengths = torch.randint(0, MAX_LENGTH + 1, (rows,), generator=generator)
    lengths[0] = 1
    mask = torch.arange(MAX_LENGTH)[None] < lengths[:, None]
    logprobs = -3.0 * torch.rand(rows, MAX_LENGTH, generator=generator, dtype=torch.float64)
    spread = 30.0 if seed % 3 == 0 else 0.3
    old = logprobs + spread * (2 * torch.rand(rows, MAX_LENGTH, generator=generator, dtype=torch.float64) - 1)
    reference = logprobs + torch.randn(rows, MAX_LENGTH, generator=generator, dtype=torch.float64)
    advantages = torch.randn(rows, generator=generator, dtype=torch.float64)
    if seed % 5 == 0:
        advantages.zero_()  # a batch of groups with equal rewards
    expanded = advantages[:, None].expand(rows, MAX_LENGTH)
    zeroed = [torch.where(mask, values, 0.0) for values in (logprobs, old, reference)]
    return LossInputs(zeroed[0].requires_grad_(), zeroed[1], expanded, mask, zeroed[2])


PAIRS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "grpo": ({"loss_type": "grpo"}, {"name": "ppo_clip"}, {"name": "sequence_mean"}),
    "clip higher": (
        {"loss_type": "grpo", "epsilon_high": 0.28},
        {"name": "ppo_clip", "clip_high": 0.28},
        {"name": "sequence_mean"},
    ),
    "delta": ({"loss_type": "grpo", "delta": 3.0}, {"name": "ppo_clip", "dual_clip": 3.0}, {"name": "sequence_mean"}),
    "dapo": ({"loss_type": "dapo"}, {"name": "ppo_clip"}, {"name": "token_mean"}),
    "cispo": ({"loss_type": "cispo", "epsilon_high": 5.0}, {"name": "cispo"}, {"name": "token_mean"}),
    "sapo": ({"loss_type": "sapo"}, {"name": "sapo"}, {"name": "sequence_mean"}),
    "sequence level": (
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
        {"name": "gspo"},
        {"name": "sequence_mean"},
    ),
    "token and KL": ({"loss_type": "dapo", "beta": 0.04}, {"name": "ppo_clip"}, {"name": "token_mean"}),
}


@pytest.mark.parametrize("pair", PAIRS.values(), ids=list(PAIRS))
def test_losses_and_gradients_are_trl_s(pair: tuple[dict[str, Any], dict[str, Any], dict[str, Any]]) -> None:
    """TRL: GRPOTrainer._compute_loss."""
    settings, loss, weighing = pair
    for seed in CASES:
        inputs = random_inputs(seed)
        expected = theirs(inputs, int(inputs.loss_mask.sum()), **settings)
        found = ours(inputs, loss, weighing, beta=settings.get("beta", 0.0))
        gradients = [torch.autograd.grad(value, inputs.logprobs)[0] for value in (found, expected)]
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6), f"case {seed}: {found} instead of {expected}"
        assert torch.allclose(*gradients, rtol=1e-6, atol=1e-6), f"case {seed}: {gradients}"
