"""An estimate of the seconds per step on CPUs, from products of the model's sizes timed on this machine for a moment.

It counts multiplications and takes every response to be as long as it may be. What it does not see (memory traffic,
other programs, rewards that take long) can make a step several times longer; `rlsys simulate` starts from what a run
has measured instead.
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import torch
from torch import nn

from rlsys.algorithms.requirements import needs_reference_workers
from rlsys.config.schema import Config
from rlsys.models.folder import empty_model
from rlsys.models.policy import DTYPES
from rlsys.preflight.prepared import Prepared
from rlsys.runtime.limits import usable_cores

TIMED_S = 0.15  # per product
ROWS = 1024  # of a product in training and scoring
# Of the time of a forward or backward, what its products take, and what one layer costs an engine per token of each
# running sequence besides: measured with the policy of benchmarks/results/README.md (3.2M parameters).
PRODUCTS_SHARE = 0.6
LAYER_S = 0.4e-3


@dataclass(frozen=True)
class StepTime:
    """Estimated seconds of the stages of a step, and the speed that was measured, in floating-point operations."""

    rollout_s: float
    reference_s: float
    update_s: float
    flops_per_s: float

    @property
    def total_s(self) -> float:
        """Seconds per step of a synchronous run."""
        return self.rollout_s + self.reference_s + self.update_s


def estimate_step(prepared: Prepared) -> StepTime:
    """Time two products, and add up what a step of the run needs."""
    config = prepared.config
    model = empty_model(prepared.model_path, trust_remote_code=config.model.trust_remote_code)
    text = model.config.get_text_config()
    widths = (int(text.hidden_size), int(getattr(text, "intermediate_size", 4 * text.hidden_size)))
    head = model.get_output_embeddings().weight.numel()
    body = sum(p.numel() for p in model.parameters() if p.dim() >= 2) - model.get_input_embeddings().weight.numel()
    tied = model.get_input_embeddings().weight is model.get_output_embeddings().weight
    per_token = 2 * (body + head if tied else body)
    fast = measure_speed(ROWS, *widths, dtype=config.learner.dtype) * PRODUCTS_SHARE
    prompts, samples, response = _sizes(config)
    longest_prompt = max(prepared.max_tokens - response, 1)
    trained = prompts * (longest_prompt + samples * response)  # a prompt counts once for all its responses
    passes = config.train.updates_per_step
    before = 1 if config.train.old_logprobs == "learner" and passes * config.train.minibatches_per_step > 1 else 0
    running = min(prompts * samples, config.rollout.max_num_seqs * config.rollout.num_workers)
    rounds = -(-prompts * samples // running) * response
    slow = measure_speed(max(running // config.rollout.num_workers, 1), *widths, dtype=config.engine_dtype)
    layers = int(text.num_hidden_layers)
    decoding = rounds * (per_token * running / (slow * PRODUCTS_SHARE) + LAYER_S * layers)
    return StepTime(
        rollout_s=decoding + per_token * prompts * longest_prompt / fast,
        reference_s=per_token * trained / fast if needs_reference_workers(config) else 0.0,
        update_s=per_token * trained * (3 * passes + before) / fast,
        flops_per_s=fast / PRODUCTS_SHARE,
    )


def measure_speed(rows: int, inputs: int, outputs: int, *, dtype: str) -> float:
    """Return the floating-point operations per second of [rows, inputs] @ [inputs, outputs] on the cores here."""
    kind = DTYPES[dtype]
    threads = torch.get_num_threads()
    torch.set_num_threads(usable_cores())
    try:
        left, layer = torch.ones(rows, inputs, dtype=kind), nn.Linear(inputs, outputs, bias=False, dtype=kind)
        with torch.inference_mode():
            layer(left)  # the first call chooses and packs
            count, started = 0, time.perf_counter()
            while (spent := time.perf_counter() - started) < TIMED_S:
                layer(left)
                count += 1
    finally:
        torch.set_num_threads(threads)
    return 2.0 * rows * inputs * outputs * count / spent


def _sizes(config: Config) -> tuple[int, int, int]:
    return config.train.prompts_per_step, config.train.samples_per_prompt, config.rollout.max_response_tokens
