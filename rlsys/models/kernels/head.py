"""The output layer for training: log-probability and entropy of given tokens without holding all logits.

With a vocabulary of 150,000 the logits of 4,096 tokens are 2.5 GB, and a plain log-softmax holds several such arrays.
Here forward and backward go through the vocabulary in chunks with a running log-sum-exp, and hold one chunk at a time.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlsys.errors import ConfigError
from rlsys.models.kernels.linear import OneDnnLinear, multiply
from rlsys.models.kernels.logits import LogitTransform

# Up to this many logits (64 MiB) are kept for the backward: computing them again would cost more than it saves.
DENSE_ELEMENTS = 2**24
CHUNK_ELEMENTS = 2**24  # logits of one chunk
MIN_CHUNK = 256  # vocabulary entries per chunk: with fewer a matrix product is all overhead


class TokenHead(OneDnnLinear):
    """A linear output layer whose `forward` returns log-probabilities of given tokens.

    It is a module, not a function on the weights, because ZeRO-3 gathers parameters in hooks around a module's forward.
    """

    transform = LogitTransform()  # what the model does to the logits of this layer

    def forward(
        self,
        states: torch.Tensor,
        targets: torch.Tensor | None = None,
        temperature: float = 1.0,
        entropy_gradient: bool = False,
    ) -> Any:
        """Compute the targets' log-probability and the entropy under `softmax(transform(logits) / temperature)`.

        Args:
            states: [n, H].
            targets: [n] int64; without them the layer's logits [n, V] are returned, as by any linear layer.
            temperature: positive.
            entropy_gradient: whether the entropy carries a gradient too.

        Returns: log-probabilities and entropies, [n] float32 each.
        """
        if targets is None:
            return super().forward(states)
        if states.shape[0] * self.weight.shape[0] <= DENSE_ELEMENTS:
            logits = self.transform(super().forward(states).float()) / temperature
            return dense_logprobs(logits, targets, entropy_gradient)
        logprobs, entropy = _Chunked.apply(states, self.weight, self.bias, targets, temperature, self.transform)
        return logprobs, entropy if entropy_gradient else entropy.detach()


def use_token_head(hf: Any, transform: LogitTransform) -> TokenHead:
    """Switch the model's linear output layer to a TokenHead in place; its name and parameters stay.

    Args:
        hf: a causal model.
        transform: what the model does to the output layer's logits.

    Raises:
        ConfigError: the output layer is not linear.
    """
    head = hf.get_output_embeddings()
    if not isinstance(head, nn.Linear):
        raise ConfigError(
            f"{type(hf).__name__} cannot be trained: its output layer is a {type(head).__name__}, not a linear one"
        )
    head.__class__ = TokenHead
    assert isinstance(head, TokenHead)
    head.transform = transform
    return head


def dense_logprobs(
    logits: torch.Tensor, targets: torch.Tensor, entropy_gradient: bool
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute log-probabilities of `targets` [n] and entropies from all logits [n, V] float32; [n] each."""
    log_z = torch.logsumexp(logits, dim=-1)  # [n]
    picked = logits.gather(-1, targets.unsqueeze(-1)).squeeze(-1) - log_z
    # Without its gradient the softmax [n, V] of the entropy is freed at once.
    with torch.set_grad_enabled(entropy_gradient and torch.is_grad_enabled()):
        entropy = log_z - (torch.softmax(logits, dim=-1) * logits).sum(-1)
    return picked, entropy


class _Chunked(torch.autograd.Function):
    """Log-probability and entropy with one chunk of the vocabulary in memory at a time."""

    @staticmethod
    def forward(
        ctx: Any,
        states: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        targets: torch.Tensor,
        temperature: float,
        transform: LogitTransform,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        # Running sums over chunks, as in an online softmax: `total` is sum_j exp(l_j - largest) and `moment` is
        # sum_j l_j exp(l_j - largest). When a chunk raises the maximum, both shrink by exp(before - largest).
        size, dtype = len(targets), torch.float32
        largest = torch.full((size,), -torch.inf, dtype=dtype, device=states.device)
        total, moment, picked = (torch.zeros_like(largest) for _ in range(3))
        for start, logits in _chunks(states, weight, bias, temperature, transform):
            before, largest = largest, torch.maximum(largest, logits.amax(dim=1))
            picked += _at(logits, targets - start)
            shrink = torch.exp(before - largest)
            exponentials = torch.exp(logits - largest[:, None])
            total = total * shrink + exponentials.sum(dim=1)
            moment = moment * shrink + exponentials.mul_(logits).sum(dim=1)
        log_z = largest + total.log()
        entropy = log_z - moment / total  # -sum_j p_j (l_j - log Z)
        ctx.save_for_backward(states, weight, bias, targets, log_z, entropy)
        ctx.temperature, ctx.transform = temperature, transform
        ctx.set_materialize_grads(False)  # the gradient of an unused output is None, and its work is skipped
        return picked - log_z, entropy

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        """Apply `d logprob / d logit_j = 1[j = target] - p_j` and `d H / d logit_j = -p_j (ln p_j + H)`."""
        states, weight, bias, targets, log_z, entropy = ctx.saved_tensors
        by_logprob, by_entropy = grads
        # In float32: adding up the chunks of the vocabulary in half precision would round at each of them.
        grad_states = torch.zeros_like(states, dtype=torch.float32)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None  # frozen under adapters
        grad_bias = None if bias is None else torch.empty_like(bias)
        for start, logits in _chunks(states, weight, bias, ctx.temperature, ctx.transform):
            # Before `sub_` overwrites the logits.
            slope = None if ctx.transform.is_identity else ctx.transform.slope(logits * ctx.temperature)
            logs = logits.sub_(log_z[:, None])  # ln p_j, in place of the chunk's logits
            grad = torch.zeros_like(logs)
            if by_logprob is not None:
                grad = logs.exp().mul_(-by_logprob[:, None])
                _add_at(grad, targets - start, by_logprob)
            if by_entropy is not None:
                grad -= by_entropy[:, None] * logs.exp() * (logs + entropy[:, None])
            grad = grad.div_(ctx.temperature) if slope is None else grad.mul_(slope).div_(ctx.temperature)
            grad = grad.to(weight.dtype)
            part = weight[start : start + grad.shape[1]]
            grad_states += multiply(grad, part.t())  # grad @ part, because `multiply` transposes its second argument
            if grad_weight is not None:
                grad_weight[start : start + grad.shape[1]] = multiply(grad.t(), states.t())
            if grad_bias is not None:
                grad_bias[start : start + grad.shape[1]] = grad.sum(0)
        return grad_states.to(states.dtype), grad_weight, grad_bias, None, None, None


def _chunks(
    states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, temperature: float, transform: LogitTransform
) -> Any:
    """Yield the first vocabulary entry and the logits [n, chunk] float32 of each chunk."""
    width = max(MIN_CHUNK, CHUNK_ELEMENTS // max(len(states), 1))
    for start in range(0, len(weight), width):
        part = slice(start, start + width)
        logits = multiply(states, weight[part], None if bias is None else bias[part]).float()
        yield start, transform(logits).div_(temperature)


def _at(logits: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """Return each row's logit at its column, or 0 where the column is in another chunk, [n]."""
    inside = (columns >= 0) & (columns < logits.shape[1])
    found = logits.gather(1, columns.clamp(0, logits.shape[1] - 1)[:, None]).squeeze(1)
    return torch.where(inside, found, 0.0)


def _add_at(grad: torch.Tensor, columns: torch.Tensor, values: torch.Tensor) -> None:
    """Add `values` [n] to each row of `grad` at its column, where the column is in this chunk."""
    inside = ((columns >= 0) & (columns < grad.shape[1])).nonzero().squeeze(1)
    grad[inside, columns[inside]] += values[inside]
