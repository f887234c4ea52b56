"""The loss's time compared with a model's forward and backward, and the memory of token log-probabilities.

python -m benchmarks.loss [--write]

Time: forward and backward of every part of the objective at once (clipped surrogate, four corrections, KL, entropy
bonus, selected tokens, metrics) on 16,384 tokens, compared with the same tokens through a model of about 100 million
parameters. Memory: log-probabilities and their gradient for 4,096 tokens with a vocabulary of 151,936, once with all
logits at once (naive) and once as the policy computes them (chunked); each in a process of its own, as the peak of
resident memory above what the process held before.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks import report
from rlsys.algorithms.inputs import LossInputs
from rlsys.algorithms.loss import Objective
from rlsys.algorithms.selection import UpdateTokens, top_entropy
from rlsys.config.algorithm_schema import AlgorithmConfig, EntropyConfig, KlConfig
from rlsys.models.kernels.head import TokenHead
from rlsys.types import Coefficients

ROWS, LENGTH = 32, 512
TOKENS, HIDDEN, VOCABULARY = 4096, 896, 151_936  # the sizes of Qwen2.5-0.5B's output layer
REPEATS = 5


def main() -> None:
    """Measure time and memory and show both."""
    parser = argparse.ArgumentParser("python -m benchmarks.loss", description=__doc__)
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/loss.json")
    parser.add_argument("--child", choices=["naive", "chunked"], help="print one side's memory as JSON and exit")
    options = parser.parse_args()
    if options.child:
        print(json.dumps(memory_of(options.child)))
        return
    header = report.header("benchmarks.loss")
    result: dict[str, Any] = {
        "loss": loss_time(),
        "model": model_time(),
        **{side: child(side) for side in ("naive", "chunked")},
    }
    result["share"] = result["loss"]["median_s"] / result["model"]["estimated_s"]
    result["memory_ratio"] = result["chunked"]["peak_mib"] / result["naive"]["peak_mib"]
    result["gradient_difference"] = gradient_difference()
    shown = report.table("the loss", ["what", "value"])
    shown.add_row("whole loss, 16,384 tokens, s", report.number(result["loss"]["median_s"], 4))
    shown.add_row("model, forward and backward of the same tokens, s", report.number(result["model"]["estimated_s"]))
    shown.add_row("share, %", report.number(100 * result["share"]))
    for side in ("naive", "chunked"):
        shown.add_row(f"log-probabilities, {side}: peak MiB", report.number(result[side]["peak_mib"], 0))
        shown.add_row(f"log-probabilities, {side}: s", report.number(result[side]["seconds"]))
    shown.add_row("memory, chunked / naive", report.number(result["memory_ratio"], 3))
    shown.add_row("largest relative difference of gradients", f"{result['gradient_difference']:.1e}")
    report.show(shown)
    if options.write:
        print(f"written: {report.write('loss', {**header, **result})}")


def loss_time() -> dict[str, Any]:
    """Measure one forward and backward through the objective with every part switched on."""
    config = AlgorithmConfig(
        policy_loss={"name": "clip_cov"},
        corrections=[{"name": name} for name in ("truncate", "mask", "opsm", "decoupled")],
        kl=KlConfig(coef=0.1, unbiased=True),
        entropy=EntropyConfig(coef=0.01, top_quantile=0.5),
    )
    objective, generator = Objective(config), torch.Generator().manual_seed(0)

    def draw() -> torch.Tensor:
        return torch.randn(ROWS, LENGTH, generator=generator) * 0.1 - 1.0

    mask = torch.rand(ROWS, LENGTH, generator=generator) < 0.9
    logprobs, entropy = draw().requires_grad_(), draw().requires_grad_()
    inputs = LossInputs(
        logprobs, draw(), draw(), mask, draw(), draw(), entropy, selected=~mask, high_entropy=draw() < -1.0
    )
    weights = torch.full((ROWS,), 1.0 / int(mask.sum()))

    tokens = UpdateTokens(logprobs.detach()[mask], entropy.detach()[mask], inputs.advantages[mask], seed=0)
    assert objective.selects is not None
    select = objective.selects

    def once() -> None:
        select(tokens)
        top_entropy(tokens, 0.5)
        result = objective(inputs, weights, Coefficients(0.1, 0.01), int(mask.sum()))
        torch.autograd.grad(result.loss, [logprobs, entropy])
        for value in (*result.sums.values(), *result.largest.values()):
            value.item()

    return timed(once)


def model_time() -> dict[str, Any]:
    """Measure a forward and backward of ROWS * LENGTH tokens, estimated from microbatches of an eighth of them."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rlsys.models.packing import TokenRow, token_batch
    from rlsys.models.policy import PolicyModel

    config = Qwen2Config(
        vocab_size=16_384,
        hidden_size=768,
        intermediate_size=3072,
        num_hidden_layers=10,
        num_attention_heads=12,
        num_key_value_heads=12,
        tie_word_embeddings=True,
    )
    policy = PolicyModel(Qwen2ForCausalLM(config)).eval()
    rows = ROWS // 8
    ids = np.random.default_rng(0).integers(config.vocab_size, size=(rows, LENGTH))
    batch = token_batch([TokenRow(row, np.arange(LENGTH) > 0, group) for group, row in enumerate(ids)], policy.layout)

    def once() -> None:
        policy.zero_grad()
        policy(batch, 1.0)[0].sum().backward()

    measured = timed(once, repeats=3)
    parameters = sum(parameter.numel() for parameter in policy.parameters())
    return {**measured, "parameters": parameters, "tokens": rows * LENGTH, "estimated_s": 8 * measured["median_s"]}


def timed(once: Callable[[], None], repeats: int = REPEATS) -> dict[str, Any]:
    """Return the seconds of `repeats` calls, after one warm-up call, and their median."""
    once()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        once()
        seconds.append(time.perf_counter() - start)
    return {"median_s": statistics.median(seconds), "seconds": seconds}


def child(side: str) -> dict[str, Any]:
    """Return the result of `memory_of`, run in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.loss", "--child", side]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(output.splitlines()[-1])


def memory_of(side: str) -> dict[str, Any]:
    """Measure the peak resident memory of one forward and backward, above weights, states and targets, in MiB."""
    head, states, targets = layer()
    compute = {"naive": naive, "chunked": chunked}[side]
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak (VmHWM) to the memory held now
    before = status_mib("VmRSS")
    start = time.perf_counter()
    torch.autograd.backward(compute(head, states, targets).sum())
    seconds = time.perf_counter() - start
    return {"peak_mib": status_mib("VmHWM") - before, "seconds": seconds}


def status_mib(key: str) -> float:
    """Return a value of /proc/self/status in MiB: VmRSS is resident memory now, VmHWM its peak since the reset."""
    line = next(x for x in Path("/proc/self/status").read_text().splitlines() if x.startswith(f"{key}:"))
    return int(line.split()[1]) / 1024


def gradient_difference() -> float:
    """Return the largest difference of the two sides' gradients, relative to the largest entry of each gradient."""
    head, states, targets = layer()
    parameters = [states, head.weight]
    weights = torch.linspace(-1, 1, TOKENS)
    sides = [torch.autograd.grad((weights * f(head, states, targets)).sum(), parameters) for f in (naive, chunked)]
    return max(float((a - b).abs().max() / a.abs().max()) for a, b in zip(*sides, strict=True))


def layer() -> tuple[TokenHead, torch.Tensor, torch.Tensor]:
    """Return an output layer, states [TOKENS, HIDDEN] and targets [TOKENS]."""
    generator = torch.Generator().manual_seed(0)
    linear = torch.nn.Linear(HIDDEN, VOCABULARY, bias=False)
    linear.__class__ = TokenHead
    assert isinstance(linear, TokenHead)
    states = torch.randn(TOKENS, HIDDEN, generator=generator).requires_grad_()
    return linear, states, torch.randint(0, VOCABULARY, (TOKENS,), generator=generator)


def naive(head: TokenHead, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the targets' log-probabilities from all logits at once."""
    return torch.log_softmax(head(states).float(), dim=-1).gather(1, targets[:, None])[:, 0]


def chunked(head: TokenHead, states: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Return the targets' log-probabilities as the policy computes them."""
    return head(states, targets, 1.0)[0]


if __name__ == "__main__":
    main()
