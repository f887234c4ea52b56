"""Options of the processes that hold a transformer besides the engines: `learner`, `critic`, `reference`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlsys.config.option import option

DTYPES = ("float32", "bfloat16")
LR_SCHEDULES = ("constant", "constant_with_warmup", "linear", "cosine")
PACKINGS = ("auto", "shared_prompt", "packed", "padded")

PACKING_HELP = "how trajectories share a forward; auto: the first of the others that the model allows"
MICROBATCH_HELP = "input tokens per forward; must hold the longest trajectory"
PER_LENGTH = "for each 1,024 tokens of rollout.max_response_tokens"
NUM_CPUS_HELP = "CPUs reserved with Ray per worker"
NUM_THREADS_HELP = "OpenMP threads per worker; null: the machine's cores divided by the workers that share them"


@dataclass
class LoraConfig:
    """Low-rank adapters (arXiv:2106.09685), by peft: with a rank above 0 nothing else is trained."""

    rank: int = option(0, ge=0, help="rank of the adapters; 0: no adapters, every parameter is trained")
    alpha: float = option(32.0, ge=1, help="scale of the adapters, divided by the rank", needs="rank > 0")
    dropout: float = option(
        0.0, ge=0, lt=1, help="share of an adapter's input that is dropped in training", needs="rank > 0"
    )
    target_modules: Any = option(
        "all-linear", help="all-linear, a list of names, or a regular expression for names", needs="rank > 0"
    )
    modules_to_save: list[str] = option([], help="modules that are trained whole, without an adapter", needs="rank > 0")
    use_rslora: bool = option(False, help="scale by alpha / sqrt(rank), arXiv:2312.03732", needs="rank > 0")
    use_dora: bool = option(False, help="train magnitude and direction apart, arXiv:2402.09353", needs="rank > 0")
    quantize_base: str | None = option(
        None,
        choices=("nf4",),
        help="hold the frozen weights in 4 bits, by bitsandbytes on GPUs (QLoRA)",
        needs="rank > 0",
    )

    @property
    def syncs_adapter_only(self) -> bool:
        """Whether engines receive the adapter without the model: vLLM serves neither DoRA nor whole modules."""
        return self.rank > 0 and not self.use_dora and not self.modules_to_save


@dataclass
class LearnerConfig:
    """Learner ranks: DeepSpeed processes that train the policy together."""

    num_workers: int = option(1, ge=1, help="number of ranks")
    zero_stage: int = option(1, choices=(0, 1, 2, 3), help="DeepSpeed's ZeRO stage")
    offload_optimizer: bool = option(False, help="keep the optimizer's state and step on the CPU; needs ZeRO 1 to 3")
    dtype: str = option(
        "auto",
        choices=("auto", *DTYPES),
        help="number format of weights and activations; auto: bfloat16 with GPUs",
    )
    lr: float = option(1e-6, ge=0, help="learning rate of AdamW")
    lr_schedule: str = option(
        "constant", choices=LR_SCHEDULES, help="course of the learning rate after `warmup_steps` updates"
    )
    warmup_steps: int = option(0, ge=0, help="optimizer updates over which the learning rate rises from 0")
    weight_decay: float = option(0.0, ge=0, help="weight decay of AdamW")
    decay_norms_and_biases: bool = option(
        False, help="decay norms and biases too, not only matrices", needs="weight_decay > 0"
    )
    betas: tuple[float, float] = option((0.9, 0.999), ge=0, lt=1, help="betas of AdamW")
    eps: float = option(1e-8, gt=0, help="epsilon of AdamW")
    max_grad_norm: float = option(1.0, ge=0, help="clip the gradient's norm to this; 0: no clipping")
    microbatch_tokens: int = option(8192, ge=1, help=MICROBATCH_HELP)
    packing: str = option("auto", choices=PACKINGS, help=PACKING_HELP)
    gradient_checkpointing: bool = option(False, help="recompute activations in the backward pass to save memory")
    lora: LoraConfig = field(default_factory=LoraConfig)
    num_cpus: float = option(1.0, ge=0, help=NUM_CPUS_HELP)
    num_threads: int | None = option(None, ge=1, help=NUM_THREADS_HELP)
    deadline_s: float = option(1800.0, gt=0, help=f"deadline for one update, {PER_LENGTH}")


@dataclass
class CriticConfig(LearnerConfig):
    """Critic ranks: a second learner group, started when the advantage estimator needs values (gae)."""

    lr: float = option(1e-5, ge=0, help="learning rate of AdamW")
    value_clip: float | None = option(0.2, gt=0, help="how far a value may move in one step; null: any distance")
    whiten: bool = option(True, help="scale advantages to zero mean and unit variance over the step's tokens")


@dataclass
class ReferenceConfig:
    """Reference workers: the frozen policy for the KL penalty, started when `algorithm.kl.coef > 0` without LoRA."""

    num_workers: int = option(1, ge=1, help="number of workers")
    microbatch_tokens: int = option(8192, ge=1, help=MICROBATCH_HELP)
    packing: str = option("auto", choices=PACKINGS, help=PACKING_HELP)
    num_cpus: float = option(1.0, ge=0, help=NUM_CPUS_HELP)
    num_threads: int | None = option(None, ge=1, help=NUM_THREADS_HELP)
    deadline_s: float = option(600.0, gt=0, help=f"deadline for the log-probabilities of one call, {PER_LENGTH}")
