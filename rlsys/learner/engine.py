"""The DeepSpeed engine around the policy: configuration, optimizer, schedule."""

from __future__ import annotations

from typing import Any

import torch

from rlsys.config import LearnerConfig
from rlsys.models.policy import DTYPES, load_policy


def deepspeed_config(config: LearnerConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration. `step()` alone marks the end of an update: microbatches only add gradients."""
    return {
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        "gradient_clipping": config.max_grad_norm,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def build_engine(config: LearnerConfig, model_path: str, world_size: int, num_steps: int, trust: bool) -> Any:
    """Load the policy and wrap it. The torch optimizer avoids DeepSpeed's compiled ones: same numbers, no compiler."""
    import deepspeed
    from transformers import get_scheduler

    policy = load_policy(model_path, DTYPES[config.dtype], trust_remote_code=trust)
    if config.gradient_checkpointing:
        policy.hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        policy.train()  # transformers checkpoints in train mode only; dropout is refused below
        _refuse_dropout(policy)
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay
    )
    # transformers' "constant" would silently leave the warm-up out.
    name = "constant_with_warmup" if config.lr_schedule == "constant" else config.lr_schedule
    schedule = get_scheduler(name, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=num_steps)
    engine, *_ = deepspeed.initialize(
        model=policy,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config=deepspeed_config(config, world_size),
        dist_init_required=False,
    )
    if config.zero_stage == 0 and config.dtype == "float32":
        _record_norm(engine, config.max_grad_norm)
    return engine


def _record_norm(engine: Any, max_norm: float) -> None:
    """DeepSpeed clips without ZeRO too, but throws the norm away: clip the same way and keep it."""

    def clip() -> None:
        engine._global_grad_norm = torch.nn.utils.clip_grad_norm_(engine.module.parameters(), max_norm)

    engine.clip_fp32_gradients = clip


def _refuse_dropout(policy: torch.nn.Module) -> None:
    for name, module in policy.named_modules():
        if isinstance(module, torch.nn.Dropout) and module.p > 0:
            raise ValueError(
                f"'{name}' has dropout {module.p}: the ratio of two forwards would be noise. Set the model's dropout "
                "to 0 or turn learner.gradient_checkpointing off"
            )
