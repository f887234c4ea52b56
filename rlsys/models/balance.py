"""The auxiliary loss that spreads tokens over the experts of a mixture, where the model's config.json asks for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Balance:
    """What a model adds to the loss it is trained with.

    Attributes:
        coef: weight beside the policy loss, config.json's `router_aux_loss_coef`.
        top_k: experts that a token goes to.
    """

    coef: float
    top_k: int

    def loss(self, router_logits: Sequence[torch.Tensor], attention_mask: torch.Tensor | None) -> torch.Tensor:
        """Compute `E * sum_e f_e * p_e` over all layers and tokens (arXiv:2101.03961, equations 4 to 6).

        `f_e` is how often a token goes to expert e, `p_e` the router's mean probability of it. The coefficient is left
        to the caller.

        Args:
            router_logits: [tokens, E] of every layer with experts.
            attention_mask: [B, T], 0 at padding; None where there is none.

        Returns: a float32 scalar with gradient.
        """
        num_experts = router_logits[0].shape[-1]
        kept = slice(None) if attention_mask is None else attention_mask.flatten().bool()
        probabilities = [logits[kept].float().softmax(-1) for logits in router_logits]
        chosen = [each.detach().topk(self.top_k).indices.flatten() for each in probabilities]
        counts = torch.stack([each.bincount(minlength=num_experts) for each in chosen]).sum(0)
        sums = torch.stack([each.sum(0) for each in probabilities]).sum(0)
        num_tokens = sum(len(each) for each in probabilities)
        return num_experts * (counts / num_tokens * sums / num_tokens).sum()


def balance_of(text: object) -> Balance | None:
    """Return the auxiliary loss that a text configuration of transformers describes; None where it names no parts."""
    coef, top_k = (getattr(text, name, None) for name in ("router_aux_loss_coef", "num_experts_per_tok"))
    return None if coef is None or not top_k else Balance(float(coef), int(top_k))
