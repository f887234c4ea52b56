"""What DeepSpeed holds on one rank by its ZeRO stage: weights, gradients, the optimizer's state, buffers.

The formulas follow DeepSpeed 0.19 with the settings of `engine.deepspeed_config`; tests compare them with what its
ranks allocate. Letters: p trained and f frozen numbers, w bytes of a weight, N ranks. The state is that between two
microbatches of one update, once the optimizer has stepped before: from then on it does not grow.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from rlsys.config.learner_schema import LearnerConfig
from rlsys.learner.engine import deepspeed_config
from rlsys.models.policy import DTYPES

FLOAT32 = 4
MOMENTS = 8  # AdamW's two per number, in float32
# DeepSpeed's defaults. ZeRO-3 keeps parameters of at most the first whole on every rank, and has at most the second
# gathered at once; without ZeRO at most the third are reduced together.
PERSISTENT_NUMBERS = 100_000
LIVE_NUMBERS = 1_000_000_000
REDUCED_NUMBERS = 500_000_000


def bucket_size(config: LearnerConfig) -> int:
    """Return how many numbers DeepSpeed reduces at once."""
    return int(deepspeed_config(config, config.num_workers)["zero_optimization"]["reduce_bucket_size"])


@dataclass(frozen=True)
class Sizes:
    """Counts of a model's numbers."""

    trained: int
    frozen: int
    largest: int  # of the trained parameters
    persistent: int  # in parameters so small that ZeRO-3 keeps them whole

    @classmethod
    def of(cls, module: nn.Module) -> Sizes:
        """Count those of a model whose parameters are whole."""
        sizes = [(parameter.numel(), parameter.requires_grad) for parameter in module.parameters()]
        trained = [size for size, is_trained in sizes if is_trained]
        frozen = sum(size for size, is_trained in sizes if not is_trained)
        return cls(sum(trained), frozen, max(trained), sum(size for size, _ in sizes if size <= PERSISTENT_NUMBERS))

    @property
    def total(self) -> int:
        """All numbers."""
        return self.trained + self.frozen


class ZeroMemory:
    """Bytes on one rank that are there whatever the microbatch is; and what the end of an update adds to them."""

    def __init__(self, config: LearnerConfig, sizes: Sizes, device: str) -> None:
        self._config = config
        self._sizes = sizes
        self._device = device
        self._width = DTYPES[config.dtype].itemsize
        self._share = 1 if config.zero_stage == 0 else config.num_workers
        self._bucket = bucket_size(config)

    def held(self) -> dict[str, int]:
        """Return what lies on the device between two microbatches."""
        return {
            "parameters": self._parameters(),
            "gradients": self._gradients(),
            "optimizer": self._optimizer(),
            "buffers": self._buffers(),
        }

    def gathered(self) -> int:
        """Return what ZeRO-3 gathers for a forward and its backward.

        DeepSpeed lets go of a module's parameters only once `LIVE_NUMBERS` others are there.
        """
        if self._config.zero_stage < 3:
            return 0
        return self._width * min(self._sizes.total - self._sizes.persistent, LIVE_NUMBERS)

    def reduction(self) -> dict[str, int]:
        """Return what is added when gradients are reduced at the end of an update."""
        config, p = self._config, self._sizes.trained
        if config.zero_stage >= 2:
            return {}  # every backward reduces its own
        if self._has_buckets:
            # A flat copy of a bucket, or of the gradient of a parameter that is larger; offloading makes two.
            flat = FLOAT32 * min(max(self._bucket, self._sizes.largest), p)
            if config.offload_optimizer:
                return {"buffers": 2 * flat}
            return {"buffers": flat, "gradients": FLOAT32 * p // self._share}  # the partition gets its own array
        # All gradients are copied into one array, up to DeepSpeed's limit.
        width = FLOAT32 if config.zero_stage == 1 else self._width
        return {"buffers": width * min(p, REDUCED_NUMBERS)}

    def step(self) -> dict[str, int]:
        """Return what the optimizer step adds; what is negative, is freed before."""
        config, p = self._config, self._sizes.trained
        if config.offload_optimizer:
            return {}  # the step is made on the CPU
        part = FLOAT32 * p // self._share
        # AdamW's denominator: on GPUs for all numbers at once; on CPUs by parameter, in two copies.
        work = part if self._device == "cuda" else 2 * part
        if config.zero_stage == 0:
            work = FLOAT32 * p if self._device == "cuda" else 2 * FLOAT32 * self._sizes.largest
            return {"optimizer": work, "gradients": FLOAT32 * p if config.dtype == "bfloat16" else 0}
        if config.zero_stage == 3:
            # A float32 copy of the gradients; parameters that were whole are divided before.
            return {"optimizer": work, "gradients": part, "parameters": -self._width * self._sizes.persistent}
        if config.dtype == "bfloat16":
            return {"optimizer": work}
        # The partition's gradients are copied twice before the gradients of all parameters go.
        return {"optimizer": work, "gradients": 2 * part - self._gradients(), "buffers": -self._buffers()}

    def host(self) -> int:
        """Return what offloading holds in pinned memory of the host."""
        config, p, width = self._config, self._sizes.trained, self._width
        if not config.offload_optimizer:
            return 0
        state = (2 * FLOAT32 + MOMENTS) * p // self._share  # weights, gradients, moments
        if config.zero_stage == 3:
            return state + FLOAT32 * p // self._share  # gradients while they are summed
        summed = FLOAT32 * p // self._share if config.zero_stage == 2 and config.dtype == "float32" else 0
        # A copy of the partition on its way back to the device, and of one gradient on its way from there.
        return state + summed + width * p // self._share + width * self._sizes.largest

    def untouched(self) -> int:
        """Return the part of ZeRO-3's bucket that is never written, because all gradients together are smaller."""
        return FLOAT32 * max(self._bucket - self._sizes.trained, 0) if self._config.zero_stage == 3 else 0

    def unplaced(self) -> int:
        """Return what ZeRO-3's reduction takes in two pieces on CPUs: a flat copy of the gradients, and gloo's of that.

        Pieces of this size find no place in the heap that activations have left, and make it larger.
        """
        if self._config.zero_stage < 3 or self._config.num_workers == 1:
            return 0
        return 2 * FLOAT32 * min(self._bucket, self._sizes.trained)

    @property
    def _has_buckets(self) -> bool:
        """Whether ZeRO-1 divides gradients by buckets: without offloading, bfloat16 has an optimizer of its own."""
        config = self._config
        return config.zero_stage == 1 and (config.dtype == "float32" or config.offload_optimizer)

    def _parameters(self) -> int:
        sizes, width = self._sizes, self._width
        if self._config.zero_stage < 3:
            return width * sizes.total
        return width * sizes.total // self._share + width * sizes.persistent

    def _gradients(self) -> int:
        config, p = self._config, self._sizes.trained
        if config.zero_stage == 0:
            return self._width * p
        if config.zero_stage == 1:
            # bfloat16: sums in float32 of the whole model; and the last microbatch's own, which stay allocated.
            own = self._width * p if config.dtype == "bfloat16" and not config.offload_optimizer else 0
            return FLOAT32 * p + own
        is_on_host = config.offload_optimizer and (config.zero_stage == 3 or config.dtype == "float32")
        return 0 if is_on_host else FLOAT32 * p // self._share

    def _optimizer(self) -> int:
        config, p = self._config, self._sizes.trained
        if config.offload_optimizer:
            return 0
        # Under ZeRO there is a float32 copy even of float32 weights: the optimizer's partition.
        has_copy = config.zero_stage > 0 or config.dtype == "bfloat16"
        return (MOMENTS + FLOAT32 * has_copy) * p // self._share

    def _buffers(self) -> int:
        config = self._config
        held = FLOAT32 * self._bucket if config.zero_stage == 3 or self._has_buckets else 0
        if config.offload_optimizer and config.zero_stage < 3:
            held += self._width * self._sizes.largest  # one gradient on its way to the host
        return held
