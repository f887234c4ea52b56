"""The output layer as what training needs of it: log-probability and entropy of given tokens, never all logits.

With a vocabulary of 150,000 the logits of 4,096 tokens are 2.5 GB, and a plain log-softmax holds several such arrays.
Here the vocabulary is walked in chunks, forward with a running log-sum-exp and again backward, so one chunk is held.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlsys.errors import RlsysError
from rlsys.models.kernels.linear import OneDnnLinear, multiply

DENSE_ELEMENTS = 2**24
"""Up to this many logits (64 MiB) are kept: computing them again would cost more than it saves."""
CHUNK_ELEMENTS = 2**24
"""Logits of one chunk."""
AFTER_HEAD: dict[str, float | None] = {"final_logit_softcapping": None, "logits_scaling": 1.0, "logit_scale": 1.0}
"""What some models (Gemma 2, Granite, Cohere) do to logits afterwards, and the value that does nothing."""
MIN_CHUNK = 256
"""Vocabulary entries of one chunk at least: below that a matrix product is all overhead."""


class TokenHead(OneDnnLinear):
    """A linear output layer; `forward` answers for the given tokens. A module, so that ZeRO-3's hooks gather it."""

    def forward(
        self,
        states: torch.Tensor,
        targets: torch.Tensor | None = None,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> Any:
        """Of the distribution `softmax(logits / temperature)`: the targets' log-probability, and its entropy.

        Args:
            states: [n, H].
            targets: [n] int64; without them the logits are returned, as by any linear layer.
            temperature: positive.
            entropy_gradient: whether the entropy carries a gradient too.

        Returns: [n] float32 each.
        """
        if targets is None:
            return super().forward(states)
        if states.shape[0] * self.weight.shape[0] <= DENSE_ELEMENTS:
            logits = super().forward(states).float() / temperature
            return dense_logprobs(logits, targets, entropy_gradient)
        logprobs, entropy = _Chunked.apply(states, self.weight, self.bias, targets, temperature)
        return logprobs, entropy if entropy_gradient else entropy.detach()


def use_token_head(hf: Any) -> TokenHead:
    """Switch the model's linear output layer in place; its name and parameters stay.

    Raises RlsysError for a model whose logits are more than that layer's product.
    """
    head = hf.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise RlsysError(f"the model's output layer is {type(head).__name__}: only a linear one can be trained")
    config = hf.config.get_text_config()
    for name, plain in AFTER_HEAD.items():
        if getattr(config, name, plain) not in (plain, None):
            raise RlsysError(
                f"the model changes its logits after the output layer ({name}={getattr(config, name)}), which rlsys "
                "does not do yet: it would train another distribution than the engine samples from"
            )
    head.__class__ = TokenHead
    assert isinstance(head, TokenHead)
    return head


def dense_logprobs(
    logits: torch.Tensor, targets: torch.Tensor, entropy_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """From all logits [n, V] float32: log-probability of `targets` [n] and entropy, [n] each."""
    log_z = torch.logsumexp(logits, dim=-1)
    picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - log_z
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = log_z - (torch.softmax(logits, dim=-1) * logits).sum(-1)
    return picked, entropy


class _Chunked(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size, dtype = len(targets), torch.float32
        largest = torch.full((size,), -torch.inf, dtype=dtype, device=states.device)
        total, moment, picked = (torch.zeros_like(largest) for _ in range(3))
        for start, logits in _chunks(states, weight, bias, temperature):
            before, largest = largest, torch.maximum(largest, logits.amax(dim=1))
            picked += _at(logits, targets - start)
            shrink = torch.exp(before - largest)
            exponentials = torch.exp(logits - largest[:, None])
            total = total * shrink + exponentials.sum(dim=1)
            moment = moment * shrink + exponentials.mul_(logits).sum(dim=1)
        log_z = largest + total.log()
        entropy = log_z - moment / total
        ctx.save_for_backward(states, weight, bias, targets, log_z, entropy)
        ctx.temperature = temperature
        ctx.set_materialize_grads(False)
        return picked - log_z, entropy

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """`d logprob / d logit_j = 1[j = target] - p_j` and `d H / d logit_j = -p_j (ln p_j + H)`."""
        states, weight, bias, targets, log_z, entropy = ctx.saved_tensors
        by_logprob, by_entropy = grads
        grad_states = torch.zeros_like(states, dtype=torch.float32)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None  # not of a frozen policy
        grad_bias = None if bias is None else torch.empty_like(bias)
        for start, logits in _chunks(states, weight, bias, ctx.temperature):
            logs = logits.sub_(log_z[:, None])
            grad = torch.zeros_like(logs)
            if by_logprob is not None:
                grad = logs.exp().mul_(-by_logprob[:, None])
                _add_at(grad, targets - start, by_logprob)
            if by_entropy is not None:
                grad -= by_entropy[:, None] * logs.exp() * (logs + entropy[:, None])
            grad = grad.div_(ctx.temperature).to(weight.dtype)
            part = weight[start : start + grad.shape[1]]
            grad_states += multiply(grad, part.t())
            if grad_weight is not None:
                grad_weight[start : start + grad.shape[1]] = multiply(grad.t(), states.t())
            if grad_bias is not None:
                grad_bias[start : start + grad.shape[1]] = grad.sum(0)
        return grad_states.to(states.dtype), grad_weight, grad_bias, None, None


def _chunks(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, temperature: float) -> Any:
    """First vocabulary entry and logits [n, chunk] float32 of each chunk."""
    width = max(MIN_CHUNK, CHUNK_ELEMENTS // max(len(states), 1))
    for start in range(0, len(weight), width):
        part = slice(start, start + width)
        logits = multiply(states, weight[part], None if bias is None else bias[part]).float()
        yield start, logits.div_(temperature)


def _at(logits: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Each row's logit at its column, 0 where the column lies outside, [n]."""
    inside = (columns >= 0) & (columns < logits.shape[1])
    found = logits.gather(1, columns.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    return torch.where(inside, found, 0.0)


def _add_at(grad: torch.Tensor, columns: torch.Tensor, values: torch.Tensor) -> None:
    inside = ((columns >= 0) & (columns < grad.shape[1])).nonzero().squeeze(1)
    grad[inside, columns[inside]] += values[inside]
