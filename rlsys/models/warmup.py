"""Supervised steps that give a policy built on the spot an accuracy from which reinforcement learning can start.

The run needs a policy that is right sometimes and wrong sometimes. Accuracy climbs fast once it begins to climb, and
the last bits of a product differ between processors, so the step that crosses the target may overshoot it by far on one
machine and not on another. `warm_up` therefore ends on an interpolation between the last weights below the target and
the first ones above it, which lands close to the target everywhere.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import nn

from rlsys.config.build_schema import Warmup
from rlsys.models.packing import TokenBatch, TokenRow, token_batch
from rlsys.models.policy import PolicyModel

Example = tuple[np.ndarray, np.ndarray]  # prompt ids and answer ids (with the end token), both [L] int
RAMP_STEPS = 50  # steps over which the learning rate rises linearly to `lr`
MAX_OVERSHOOT = 0.02  # an accuracy of at most `target_accuracy` plus this counts as landed
MAX_HALVINGS = 24  # 2**-24 of the way between two checks is below float32's resolution of a weight

logger = logging.getLogger(__name__)


def warm_up(hf: Any, train: Sequence[Example], held_out: Sequence[Example], config: Warmup, seed: int) -> float:
    """Train `hf` in place on `train` until its greedy accuracy on `held_out` reaches the target.

    Greedy decoding reproduces an answer exactly when every answer token is the arg-max after its true prefix, so one
    forward measures the accuracy and nothing is generated.

    Returns: the accuracy of the weights that `hf` ends with; below the target when `max_steps` did not suffice.
    """
    with _one_thread():
        measure = partial(greedy_accuracy, hf, held_out)
        accuracy = _train(hf, train, measure, config, seed)
    hf.eval()
    return accuracy


def _train(hf: Any, train: Sequence[Example], measure: Callable[[], float], config: Warmup, seed: int) -> float:
    # Padded, because `greedy_accuracy` calls the transformers model directly, which must keep its own attention.
    policy = PolicyModel(hf, packing="padded").train()
    optimizer = torch.optim.AdamW(hf.parameters(), lr=config.lr, weight_decay=0.0)
    generator = np.random.default_rng(seed)
    accuracy, below = measure(), _snapshot(hf)
    if accuracy >= config.target_accuracy:
        return accuracy
    for step in range(1, config.max_steps + 1):
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, step / RAMP_STEPS)
        chosen = generator.integers(len(train), size=config.batch_size)  # drawn with replacement
        batch = _batch([train[index] for index in chosen])
        logprobs, _ = policy(batch, 1.0)
        loss = -logprobs.sum() / batch.loss_mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimizer.step()
        if step % config.check_every and step < config.max_steps:
            continue
        accuracy = measure()
        logger.debug("warm-up step %d: accuracy %.3f", step, accuracy)
        if accuracy >= config.target_accuracy:
            return land_on_target(hf, below, measure, accuracy, config.target_accuracy)
        below = _snapshot(hf)
    return accuracy


@torch.no_grad()
def land_on_target(
    model: nn.Module, below: Sequence[torch.Tensor], measure: Callable[[], float], accuracy: float, target: float
) -> float:
    """Move `model` towards the weights `below` until its accuracy is just above `target`; return that accuracy.

    Bisection on the line between the two: the near end always reaches the target and the far end never does, so even
    where accuracy is not monotone the search closes in on a point where it crosses the target. Weights a few steps
    apart differ little, so accuracy changes by single examples there.

    Args:
        model: a model whose weights reach the target. It ends with weights that reach it too.
        below: the values of `model.parameters()` at an accuracy below the target.
        measure: returns the accuracy of the weights that `model` holds.
        accuracy: accuracy of the weights that `model` holds now.
        target: the accuracy to land on.
    """
    above = _snapshot(model)
    low, high = 0.0, 1.0  # shares of the way from `below` to `above`
    for _ in range(MAX_HALVINGS):
        if accuracy <= target + MAX_OVERSHOOT:
            break
        middle = (low + high) / 2
        _interpolate(model, below, above, middle)
        found = measure()
        if found >= target:
            high, accuracy = middle, found
        else:
            low = middle
    _interpolate(model, below, above, high)
    return accuracy


@torch.no_grad()
def greedy_accuracy(hf: Any, examples: Sequence[Example], batch_size: int = 512) -> float:
    """Return the share of examples whose answer greedy decoding would reproduce exactly."""
    correct = 0
    for start in range(0, len(examples), batch_size):
        batch = _batch(examples[start : start + batch_size])
        logits = hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits  # [B, T, V]
        # Position t predicts token t + 1.
        hits = logits[:, :-1].argmax(-1) == batch.input_ids[:, 1:]
        correct += int((hits | ~batch.loss_mask[:, 1:]).all(dim=1).sum())
    return correct / max(len(examples), 1)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Compute on one thread inside the context.

    The products of a tiny model take microseconds, and OpenMP's threads spin while they wait for each other at the end
    of every one. When another process holds one of the cores, most of the time goes into that: a warm-up of 10 s took
    minutes. One thread waits for nobody, and the result does not depend on the number of cores either.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _snapshot(model: nn.Module) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def _interpolate(model: nn.Module, below: Sequence[torch.Tensor], above: Sequence[torch.Tensor], share: float) -> None:
    for parameter, start, end in zip(model.parameters(), below, above, strict=True):
        parameter.copy_(torch.lerp(start, end, share))


def _batch(examples: Sequence[Example]) -> TokenBatch:
    rows = [
        TokenRow(np.concatenate([prompt, answer]), np.arange(len(prompt) + len(answer)) >= len(prompt))
        for prompt, answer in examples
    ]
    return token_batch(rows, "padded")
