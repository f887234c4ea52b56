"""The DeepSpeed engine around a model: its configuration, optimizer and schedule."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from rlsys.config.learner_schema import LearnerConfig
from rlsys.errors import ConfigError
from rlsys.models.checkpointing import checkpoint_activations

NO_CLIPPING = 1e30  # a norm that no gradient reaches


def deepspeed_config(config: LearnerConfig, world_size: int) -> dict[str, Any]:
    """Return DeepSpeed's configuration.

    DeepSpeed's own accounting of batch sizes is not used: microbatches add gradients, and only `step()` ends an update.
    """
    precise: dict[str, Any] = {}
    if config.dtype == "bfloat16" and config.zero_stage > 0:
        # Gradients are summed over dozens of microbatches and ranks: bfloat16 would round the later ones away.
        precise = {"data_types": {"grad_accum_dtype": "fp32"}, "communication_data_type": "fp32"}
    return {
        **precise,
        # DeepSpeed requires the first of these to be the product of the other two and the number of ranks. None of them
        # sets a batch size here. The steps must be 1, because `backward` divides the loss by them.
        "train_batch_size": world_size,
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "managed_gradient_accumulation": False,
        # With 0 DeepSpeed would neither clip nor check the norm, and would apply a gradient of NaN.
        "gradient_clipping": config.max_grad_norm or NO_CLIPPING,
        "bf16": {"enabled": config.dtype == "bfloat16"},
        "zero_optimization": {
            "stage": config.zero_stage,
            # ZeRO 3 would switch it on by itself. While the caller ends the accumulation, DeepSpeed supports it only in
            # ZeRO 2.
            "overlap_comm": False,
            # In elements, not bytes: 200 MB of float32 per bucket, a tenth of DeepSpeed's default.
            "reduce_bucket_size": 50_000_000,
            "allgather_bucket_size": 50_000_000,
            **_offload(config),
        },
        # Allow torch's AdamW, also for offloading.
        "zero_force_ds_cpu_optimizer": False,
        "zero_allow_untested_optimizer": True,
        "steps_per_print": 2**31,  # never
        "wall_clock_breakdown": False,
    }


def _offload(config: LearnerConfig) -> dict[str, Any]:
    pinned = {"device": "cpu", "pin_memory": torch.cuda.is_available()}
    return {"offload_optimizer": pinned} if config.offload_optimizer else {}


def build_engine(config: LearnerConfig, module: Any, world_size: int, num_updates: int) -> Any:
    """Wrap `module` in a DeepSpeed engine.

    torch's AdamW is used in place of DeepSpeed's own optimizers, which need a compiler and compute the same.

    Args:
        config: options of the learner or critic.
        module: a policy or critic; parameters that need no gradient are not trained.
        world_size: number of ranks.
        num_updates: optimizer updates of the whole run, the length of the schedule.
    """
    import deepspeed
    from transformers import get_scheduler

    if config.gradient_checkpointing:
        if module.traits.checkpointing is not None:
            raise ConfigError(
                f"gradient_checkpointing=true is not possible with this model: {module.traits.checkpointing}"
            )
        checkpoint_activations(next(c for c in module.children() if hasattr(c, "gradient_checkpointing_enable")))
    optimizer = torch.optim.AdamW(
        parameter_groups(module, config),
        lr=config.lr,
        betas=config.betas,
        eps=config.eps,
        fused=config.offload_optimizer or None,  # on CPUs one pass over the state instead of a dozen
    )
    # transformers' schedule "constant" ignores warm-up steps.
    name = "constant_with_warmup" if config.lr_schedule == "constant" else config.lr_schedule
    schedule = get_scheduler(name, optimizer, num_warmup_steps=config.warmup_steps, num_training_steps=num_updates)
    engine, *_ = deepspeed.initialize(
        model=module,
        optimizer=optimizer,
        lr_scheduler=schedule,
        config=deepspeed_config(config, world_size),
        dist_init_required=False,  # the rank has joined its group already
    )
    # Only in this case does DeepSpeed call torch's optimizer directly. In bfloat16 and under ZeRO it wraps the
    # optimizer, and the wrapper records and checks the norm.
    if config.zero_stage == 0 and config.dtype == "float32":
        _record_norm(engine, config.max_grad_norm or NO_CLIPPING)
    return engine


@contextlib.contextmanager
def divide_at_once(config: LearnerConfig, world_size: int) -> Iterator[None]:
    """With ZeRO-3, divide every model that transformers loads in the context among the ranks while it is loaded.

    Without it each rank would hold the whole model, in its host's memory and on its GPU, until DeepSpeed divides it.
    """
    if config.zero_stage < 3:
        yield
        return
    from transformers.integrations.deepspeed import HfDeepSpeedConfig, unset_hf_deepspeed_config

    # transformers looks at the object that was made last, and holds a weak reference to it.
    held = HfDeepSpeedConfig(deepspeed_config(config, world_size))
    try:
        yield
    finally:
        unset_hf_deepspeed_config()
        del held


def parameter_groups(module: nn.Module, config: LearnerConfig) -> list[dict[str, Any]]:
    """Return the optimizer's groups: the trained matrices, then the trained norms and biases; none is empty."""
    matrices: list[nn.Parameter] = []
    others: list[nn.Parameter] = []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        # Under ZeRO-3 a parameter's own shape is (0,). Experts have one bias each: a matrix that is none.
        is_matrix = len(getattr(parameter, "ds_shape", parameter.shape)) > 1 and "bias" not in name
        (matrices if is_matrix else others).append(parameter)
    decay = config.weight_decay
    groups = [
        {"params": matrices, "weight_decay": decay},
        {"params": others, "weight_decay": decay if config.decay_norms_and_biases else 0.0},
    ]
    return [group for group in groups if group["params"]]


@contextlib.contextmanager
def keep_options(engine: Any) -> Iterator[None]:
    """Give the optimizer and its schedule their present options again after the context has loaded a checkpoint.

    A checkpoint brings the options of the run that wrote it. The schedule goes on from the checkpoint's update.
    """
    schedule = engine.lr_scheduler
    base_lrs = list(schedule.base_lrs)
    options = [{k: v for k, v in group.items() if k != "params"} for group in engine.optimizer.param_groups]
    yield
    lrs = [base * factor(schedule.last_epoch) for base, factor in zip(base_lrs, schedule.lr_lambdas, strict=True)]
    schedule.base_lrs, schedule._last_lr = base_lrs, lrs
    for group, kept, lr in zip(engine.optimizer.param_groups, options, lrs, strict=True):
        group.update(kept, lr=lr)


def forget_gradients(engine: Any) -> None:
    """Drop the gradients of a step that was refused.

    DeepSpeed does this itself, except with an offloaded optimizer of ZeRO 1 or 2: there it would add the next gradients
    to the ones that were not finite.
    """
    optimizer = engine.optimizer
    if getattr(optimizer, "cpu_offload", False) and isinstance(getattr(optimizer, "averaged_gradients", None), dict):
        optimizer.averaged_gradients = dict.fromkeys(optimizer.averaged_gradients)


def _record_norm(engine: Any, max_norm: float) -> None:
    """Replace DeepSpeed's clipping without ZeRO by one that records the norm and refuses a gradient that is not finite.

    DeepSpeed's own clips in the same way, but discards the norm and applies the gradient even when it holds NaN. Under
    ZeRO it refuses such a step itself.
    """

    def clip() -> None:
        parameters = list(engine.module.parameters())
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_norm)
        # `get_global_grad_norm` returns this attribute. DeepSpeed sets it only from optimizers that record their norm,
        # which torch's AdamW does not.
        engine._global_grad_norm = norm
        # DeepSpeed advances the schedule unless the optimizer has this flag, as its own do.
        engine.optimizer.overflow = not bool(torch.isfinite(norm))
        if engine.optimizer.overflow:
            # DeepSpeed calls the optimizer all the same. AdamW skips parameters without a gradient, and does not decay
            # them either.
            for parameter in parameters:
                parameter.grad = None

    engine.clip_fp32_gradients = clip
