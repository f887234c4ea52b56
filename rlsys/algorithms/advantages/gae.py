"""Generalised advantage estimation with a critic (arXiv:1506.02438)."""

from __future__ import annotations

import torch

from rlsys.algorithms.advantages import register


@register("gae", critic=True)
def gae(
    rewards: torch.Tensor, values: torch.Tensor, loss_mask: torch.Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute `A_t = sum_l (gamma lam)^l delta_{t+l}` with `delta_t = r_t + gamma V_{t+1} - V_t` over sampled tokens.

    Tokens outside the mask (the prompt, an environment's turns, padding) are skipped: the value that follows a sampled
    token is the one of the next sampled token, and 0 after the last, where the episode ends.

    Args:
        rewards: [B, T] float32.
        values: [B, T] float32; `values[:, t]` is the critic's value of the state before token t.
        loss_mask: [B, T] bool, the sampled tokens.
        gamma: discount per token.
        lam: weight of longer sums; 0 is one-step temporal differences, 1 is the whole return.

    Returns: advantages and returns (`advantages + values`, the critic's targets), [B, T] float32, 0 outside the mask.
    """
    advantages = torch.zeros_like(values)
    following = values.new_zeros(len(values))  # [B], advantage of the next sampled token
    next_value = values.new_zeros(len(values))  # [B], value before the next sampled token
    # From the last token to the first. At tokens outside the mask both sums stay as they are, which skips them.
    for t in range(values.shape[1] - 1, -1, -1):
        mask = loss_mask[:, t]  # [B]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(mask, delta + gamma * lam * following, following)
        next_value = torch.where(mask, values[:, t], next_value)
        advantages[:, t] = torch.where(mask, following, 0.0)
    return advantages, torch.where(loss_mask, advantages + values, 0.0)
