"""Supervised steps that give a policy built on the spot something to start from."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from rlsys.config.schema import Warmup
from rlsys.models.packing import TokenBatch, TokenRow, token_batch
from rlsys.models.policy import PolicyModel

Example = tuple[np.ndarray, np.ndarray]
"""Prompt ids and answer ids (with the end token), both [L] int."""


def warm_up(hf: Any, train: Sequence[Example], held_out: Sequence[Example], config: Warmup, seed: int) -> float:
    """Train in place on `train` until the held-out greedy accuracy reaches the target; returns that accuracy.

    Greedy decoding reproduces an answer exactly when every answer token is the arg-max after its true prefix, so the
    accuracy needs one forward and no generation.
    """
    policy = PolicyModel(hf, packing="padded").train()
    optimizer = torch.optim.AdamW(hf.parameters(), lr=config.lr, weight_decay=0.0)
    generator = np.random.default_rng(seed)
    accuracy = greedy_accuracy(hf, held_out)
    for step in itertools.count():
        if step >= config.max_steps or accuracy >= config.target_accuracy:
            break
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / 50)
        chosen = generator.integers(len(train), size=config.batch_size)
        batch = _batch([train[i] for i in chosen])
        logprobs, _ = policy(batch, 1.0)
        loss = -logprobs.sum() / batch.loss_mask.sum()
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), 1.0)
        optimizer.step()
        if (step + 1) % config.check_every == 0:
            accuracy = greedy_accuracy(hf, held_out)
    hf.eval()
    return accuracy


@torch.no_grad()
def greedy_accuracy(hf: Any, examples: Sequence[Example], batch_size: int = 512) -> float:
    """Share of examples whose answer greedy decoding would reproduce exactly."""
    correct = 0
    for start in range(0, len(examples), batch_size):
        batch = _batch(examples[start : start + batch_size])
        logits = hf(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        hits = logits[:, :-1].argmax(-1) == batch.input_ids[:, 1:]
        correct += int((hits | ~batch.loss_mask[:, 1:]).all(dim=1).sum())
    return correct / max(len(examples), 1)


def _batch(examples: Sequence[Example]) -> TokenBatch:
    rows = [
        TokenRow(np.concatenate([prompt, answer]), np.arange(len(prompt) + len(answer)) >= len(prompt))
        for prompt, answer in examples
    ]
    return token_batch(rows, "padded")
