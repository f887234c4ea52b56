"""Generalised advantage estimation with a critic (arXiv:1506.02438)."""

from __future__ import annotations

import torch

from rlsys.algorithms.advantages import register


@register("gae", critic=True)
def gae(
    rewards: torch.Tensor, values: torch.Tensor, loss_mask: torch.Tensor, *, gamma: float = 1.0, lam: float = 0.95
) -> tuple[torch.Tensor, torch.Tensor]:
    """`A_t = sum_l (gamma lam)^l delta_{t+l}` with `delta_t = r_t + gamma V_{t+1} - V_t`, over masked tokens alone.

    Tokens outside the mask, before, between (an environment's) and after the sampled ones, are stepped over: the next
    value of a sampled token is that of the next sampled one, and 0 after the last (the episode ends there).

    Args:
        rewards, values: [B, T] float32; `values[:, t]` is the critic's of the state before token t.
        loss_mask: [B, T] bool, the sampled tokens.

    Returns: advantages and returns (`advantages + values`, what the critic learns), [B, T] float32, 0 outside the mask.
    """
    advantages = torch.zeros_like(values)
    following = values.new_zeros(len(values))  # advantage and value of the next sampled token
    next_value = values.new_zeros(len(values))
    for t in range(values.shape[1] - 1, -1, -1):
        mask = loss_mask[:, t]
        delta = rewards[:, t] + gamma * next_value - values[:, t]
        following = torch.where(mask, delta + gamma * lam * following, following)
        next_value = torch.where(mask, values[:, t], next_value)
        advantages[:, t] = torch.where(mask, following, 0.0)
    return advantages, torch.where(loss_mask, advantages + values, 0.0)
