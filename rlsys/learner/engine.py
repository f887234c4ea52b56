"""The DeepSpeed engine around a model: configuration, optimizer, schedule."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlsys.config.schema import LearnerConfig
from rlsys.models.adapters import set_dropout

NO_CLIPPING = 1e30


def deepspeed_config(config: LearnerConfig, world_size: int) -> dict[str, Any]:
    """DeepSpeed's configuration. `step()` alone marks the end of an update: microbatches only add gradients."""
    precise: dict[str, Any] = {}
    if config.dtype == "bfloat16" and config.zero_stage > 0:
        # Sums over dozens of microbatches and ranks: in bfloat16 the later ones would be rounded away.
        precise = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    return {
        **precise,
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # With 0 it would neither clip nor look at the norm, and step on NaN.
        "gradient_clipping": config.max_grad_norm or NO_CLIPPING,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "zero_optimization": {
            "stage": config.zero_stage,
            "overlap_comm": False,
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
            **_offload(config),
        },
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,
        "wall_clock_breakdown": False,
    }


def _offload(config: LearnerConfig) -> dict[str, Any]:
    pinned = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {"offload_optimizer": pinned} if config.offload_optimizer else {}


def build_engine(config: LearnerConfig, module: nn.Module, world_size: int, num_updates: int) -> Any:
    """Wrap `module`. The torch optimizer avoids DeepSpeed's compiled ones: same numbers, no compiler."""
    import deepspeed
    from transformers import get_scheduler

    if config.gradient_checkpointing:
        model: Any = next(child for child in module.children() if hasattr(child, "gradient_checkpointing_enable"))
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        module.train()  # transformers checkpoints in train mode only; dropout is refused below
        set_dropout(module, is_active=False)
        _refuse_dropout(module)
    parameters = [p for p in module.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(
        parameters,
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        weight_decay=config.weight_decay,
        fused=config.offload_optimizer or None,  # on the CPU one pass over the state instead of a dozen
    )
    # transformers' "constant" would silently leave the warm-up out.
    name = "constant_with_warmup" if config.lr_schedule == "constant" else config.lr_schedule
    schedule = get_scheduler(name, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=num_updates)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config=deepspeed_config(config, world_size),
        dist_init_required=False,
    )
    if config.zero_stage == 0 and config.dtype == "float32":
        _record_norm(engine, config.max_grad_norm or NO_CLIPPING)
    return engine


def forget_gradients(engine: Any) -> None:
    """After a step that was refused. DeepSpeed does so itself, but with an offloaded optimizer of ZeRO 1 or 2 it adds
    the next gradients to those that were not finite."""
    optimizer = engine.optimizer
    if getattr(optimizer, "cpu_offload", False) and isinstance(getattr(optimizer, "averaged_gradients", None), dict):
        optimizer.averaged_gradients = dict.fromkeys(optimizer.averaged_gradients)


def _record_norm(engine: Any, max_norm: float) -> None:
    """DeepSpeed clips without ZeRO too, but throws the norm away and steps whatever it was: clip the same way, keep it,
    and leave nothing to step with when it is not finite (as ZeRO does)."""

    def clip() -> None:
        parameters = list(engine.module.parameters())
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        engine._global_grad_norm = norm
        if not torch.isfinite(norm):
            for parameter in parameters:
                parameter.grad = None

    engine.clip_fp32_gradients = clip


def _refuse_dropout(model: nn.Module) -> None:
    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Dropout) and module.p > 0 and ".lora_dropout." not in name:
            raise ValueError(
                f"'{name}' has dropout {module.p}: the ratio of two forwards would be noise. Set the model's dropout "
                "to 0 or turn learner.gradient_checkpointing off"
            )
