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

from rlsys.algorithms import advantages, aggregation
from rlsys.algorithms.advantages import AdvantageInputs
from rlsys.algorithms.inputs import LossInputs
from rlsys.algorithms.loss import Objective
from rlsys.config.algorithm_schema import AlgorithmConfig, KlConfig
from rlsys.types import Coefficients

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
    stand_in.get_off_policy_mask = trl_trainer.GRPOTrainer.get_off_policy_mask
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
        "sampling_per_token_logps": inputs.behavior_logprobs,
    }
    mode = changes.pop("vllm_importance_sampling_mode", None)
    if mode is not None:
        changes |= {"use_vllm": True, "vllm_importance_sampling_correction": True}
        batch["importance_sampling_ratio"] = vllm_ratio(inputs, mode)
    loss = trl_trainer.GRPOTrainer._compute_loss(trainer(inputs.logprobs, **changes), None, batch)
    assert isinstance(loss, torch.Tensor)
    return loss


def vllm_ratio(inputs: LossInputs, mode: str) -> torch.Tensor:
    """The weights that `GRPOTrainer._generate_and_score_completions` makes of these log-probabilities."""
    lengths = inputs.loss_mask.sum(1).tolist()
    given = scored(
        torch.zeros(len(lengths), 1),
        lengths=lengths,
        old=inputs.old_logprobs,
        sampled=inputs.behavior_logprobs,
        vllm_importance_sampling_mode=mode,
    )
    ratio = given["importance_sampling_ratio"]
    wide = torch.zeros(inputs.logprobs.shape[0], max(inputs.logprobs.shape[1] - ratio.shape[1], 0))
    return torch.cat([ratio, wide], dim=1) if mode.startswith("token") else ratio


def ours(inputs: LossInputs, algorithm: dict[str, Any], beta: float = 0.0, *, unbiased: bool = False) -> torch.Tensor:
    """The same through the whole objective, with the aggregation's weights."""
    config = AlgorithmConfig(**algorithm, kl=KlConfig(beta, unbiased=unbiased))
    lengths, groups = inputs.loss_mask.sum(1), torch.arange(len(inputs.loss_mask))
    weights = aggregation.registry.component(config.aggregation)(lengths, groups)
    return Objective(config)(inputs, weights, Coefficients(beta, 0.0), int(lengths.sum())).loss


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
    behavior = old + 0.1 * spread * torch.randn(rows, MAX_LENGTH, generator=generator, dtype=torch.float64)
    behavior = behavior.float().double()  # TRL keeps the engine's in float32
    zeroed = [torch.where(mask, values, 0.0) for values in (logprobs, old, reference, behavior)]
    return LossInputs(zeroed[0].requires_grad_(), zeroed[1], expanded, mask, zeroed[2], zeroed[3])


def pair(theirs: dict[str, Any], loss: str, weighing: str, **ours: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """TRL's settings and ours."""
    lengths = {"length": MAX_LENGTH} if weighing == "constant_length" else {}
    options = ours.pop("options", {})
    node = {"policy_loss": {"name": loss, **options}, "aggregation": {"name": weighing, **lengths}}
    return theirs, {**node, **ours}


PAIRS = {
    "grpo": pair({"loss_type": "grpo"}, "ppo_clip", "sequence_mean"),
    "bnpo": pair({"loss_type": "bnpo"}, "ppo_clip", "local_token_mean"),  # all rows are one microbatch here
    "dr_grpo": pair({"loss_type": "dr_grpo"}, "ppo_clip", "constant_length"),
    "dapo": pair({"loss_type": "dapo"}, "ppo_clip", "token_mean"),
    "cispo": pair({"loss_type": "cispo", "epsilon_high": 5.0}, "cispo", "token_mean"),
    "sapo": pair({"loss_type": "sapo"}, "sapo", "sequence_mean"),
    "clip higher": pair(
        {"loss_type": "grpo", "epsilon_high": 0.28}, "ppo_clip", "sequence_mean", options={"clip_high": 0.28}
    ),
    "delta": pair({"loss_type": "grpo", "delta": 3.0}, "ppo_clip", "sequence_mean", options={"dual_clip": 3.0}),
    "sequence level": pair(
        {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon_low": 3e-4, "epsilon_high": 4e-4},
        "gspo",
        "sequence_mean",
    ),
    "opsm": pair(
        {"loss_type": "grpo", "off_policy_mask_threshold": 0.05},
        "ppo_clip",
        "sequence_mean",
        corrections=[{"name": "opsm", "threshold": 0.05}],
    ),
    **{
        f"vLLM {level} {kind}": pair(
            {"loss_type": "dapo", "vllm_importance_sampling_mode": f"{level}_{kind}"},
            "ppo_clip",
            "token_mean",
            corrections=[{"name": kind, "level": level, "low": 0.5, "high": 2.0}],
        )
        for level in ("token", "sequence")
        for kind in ("truncate", "mask")
    },
}


def check(found: torch.Tensor, expected: torch.Tensor, logprobs: torch.Tensor, case: int) -> None:
    """Values and gradients equal to 1e-6, absolutely or relatively."""
    gradients = [torch.autograd.grad(value, logprobs)[0] for value in (found, expected)]
    assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6), f"case {case}: {found} instead of {expected}"
    assert torch.allclose(*gradients, rtol=1e-6, atol=1e-6), f"case {case}: {gradients}"


@pytest.mark.parametrize("settings", PAIRS.values(), ids=list(PAIRS))
def test_losses_and_gradients_are_trl_s(settings: tuple[dict[str, Any], dict[str, Any]]) -> None:
    """TRL: GRPOTrainer._compute_loss; the vLLM weights come from GRPOTrainer._generate_and_score_completions."""
    for seed in CASES:
        inputs = random_inputs(seed)
        expected = theirs(inputs, int(inputs.loss_mask.sum()), **settings[0])
        check(ours(inputs, settings[1]), expected, inputs.logprobs, seed)


@pytest.mark.parametrize("unbiased", [False, True], ids=["k3", "bias-corrected"])
def test_kl_is_trl_s(unbiased: bool) -> None:
    """TRL: GRPOTrainer._compute_loss with beta, and with use_bias_correction_kl."""
    algorithm = pair({}, "ppo_clip", "token_mean")[1]
    for seed in CASES:
        inputs = random_inputs(seed)
        changes = {"loss_type": "dapo", "beta": 0.04, "use_bias_correction_kl": unbiased}
        expected = theirs(inputs, int(inputs.loss_mask.sum()), **changes)
        check(ours(inputs, algorithm, 0.04, unbiased=unbiased), expected, inputs.logprobs, seed)


class Scorer(SimpleNamespace):
    """Stands in for the trainer in `_generate_and_score_completions`: what it generates and how it is rewarded."""


def scored(
    rewards: torch.Tensor,
    *,
    group_size: int = 1,
    lengths: list[int] | None = None,
    old: torch.Tensor | None = None,
    sampled: torch.Tensor | None = None,
    weights: list[float] | None = None,
    **changes: Any,
) -> dict[str, torch.Tensor]:
    """`GRPOTrainer._generate_and_score_completions` on rewards [N, K] and, with vLLM, on log-probabilities."""
    size = len(rewards)
    lengths = lengths or [1] * size
    responses = [[7] * length for length in lengths]
    of_engine = None if sampled is None else [sampled[i, :n].tolist() for i, n in enumerate(lengths)]
    args = SimpleNamespace(
        steps_per_generation=1,
        gradient_accumulation_steps=1,
        per_device_train_batch_size=size,
        gradient_checkpointing_kwargs=None,
    )
    accelerator = Accelerator()
    accelerator.device, accelerator.process_index = torch.device("cpu"), 0  # type: ignore[attr-defined]
    settings = {
        "args": args,
        "accelerator": accelerator,
        "model": SimpleNamespace(training=True, is_gradient_checkpointing=False),
        "use_vllm": sampled is not None,
        "vllm_importance_sampling_correction": sampled is not None,
        "vllm_importance_sampling_clip_min": 0.5,
        "vllm_importance_sampling_clip_max": 2.0,
        "num_generations": group_size,
        "num_iterations": 1,
        "scale_rewards": "group",
        "multi_objective_aggregation": "sum_then_normalize",
        "reward_weights": torch.tensor(weights or [1.0] * rewards.shape[1]),
        "reward_funcs": [None] * rewards.shape[1],
        "reward_func_names": [str(k) for k in range(rewards.shape[1])],
        "beta": 0.0,
        "mask_truncated_completions": False,
        "pad_to_multiple_of": None,
        "_tokenizer": SimpleNamespace(pad_token_id=0),
        "tools": [],
        "environments": None,
        "environment_factories": None,
        "_metrics": {"train": defaultdict(list)},
        "_logs": {name: defaultdict(list) if name in ("rewards", "extra") else [] for name in LOGS},
        "_pending_extra_logs": {},
        "_pending_metrics": {},
        "log_multimodal": False,
        "_generate": lambda _: ([[1]] * size, responses, None, ["?"] * size, of_engine, {}, None, []),
        "_calculate_rewards": lambda *_: rewards,
        "_get_per_token_logps_and_entropies": lambda *_, **__: (None if old is None else old[:, : max(lengths)], 0, 0),
    }
    stand_in = Scorer(**{**settings, **changes})
    found = trl_trainer.GRPOTrainer._generate_and_score_completions(stand_in, [{"prompt": "?"} for _ in range(size)])
    assert isinstance(found, dict)
    return found


LOGS = ("prompt", "completion", "rewards", "advantages", "extra", "images")


def random_rewards(seed: int) -> tuple[torch.Tensor, list[float], int]:
    """[N, K] rewards with K weights in groups of equal size; every fourth case has groups of equal rewards."""
    generator = torch.Generator().manual_seed(seed)
    group_size, num_groups = 2 + seed % 4, 1 + seed % 5
    rewards = torch.randint(0, 3, (group_size * num_groups, 1 + seed % 3), generator=generator).double()
    rewards += torch.rand(rewards.shape, generator=generator, dtype=torch.float64) * (seed % 2)
    if seed % 4 == 0:
        rewards[:group_size] = rewards[0]
    return rewards, [0.5, 1.0, 2.0][: rewards.shape[1]], group_size


@pytest.mark.parametrize(
    ("settings", "node"),
    [
        ({"scale_rewards": "group"}, {"name": "grpo"}),
        ({"scale_rewards": "batch"}, {"name": "grpo", "scale": "batch"}),
        ({"scale_rewards": "none"}, {"name": "grpo", "scale": "none"}),
        ({"scale_rewards": "none"}, {"name": "dr_grpo"}),
        ({"multi_objective_aggregation": "normalize_then_sum"}, {"name": "gdpo"}),
    ],
    ids=["group", "batch", "none", "dr_grpo", "gdpo"],
)
def test_advantages_are_trl_s(settings: dict[str, Any], node: dict[str, Any]) -> None:
    """TRL: GRPOTrainer._generate_and_score_completions."""
    for seed in CASES:
        parts, weights, group_size = random_rewards(seed)
        expected = scored(parts, group_size=group_size, weights=weights, **settings)["advantages"]
        part_weights = torch.tensor(weights, dtype=torch.float64)
        groups = torch.arange(len(parts)) // group_size
        inputs = AdvantageInputs(
            (parts * part_weights).sum(1), groups, torch.ones(len(parts)), parts=parts, part_weights=part_weights
        )
        found = advantages.registry.component(node)(inputs)
        assert torch.allclose(found, expected, rtol=1e-6, atol=1e-6), f"case {seed}: {found} instead of {expected}"
