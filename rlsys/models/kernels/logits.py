"""What some models do to their logits after the output layer: a factor, a soft cap, or both."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import product
from typing import Any

import torch

# Numbers of configurations that may shape logits, such as `logits_scaling`, `final_logit_softcapping`,
# `logits_soft_cap`, `lm_head_multiplier`.
_SHAPES_LOGITS = re.compile(r"(?!attn_).*logit.*|lm_head_multiplier|output_multiplier")


@dataclass(frozen=True)
class LogitTransform:
    """The map from the output layer's logits z to `softcap * tanh(scale * z / softcap)`, or `scale * z` without cap."""

    scale: float = 1.0
    softcap: float | None = None

    @property
    def is_identity(self) -> bool:
        """Whether logits stay as they are."""
        return self.scale == 1.0 and self.softcap is None

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """Return the model's logits, of the same shape."""
        if self.scale != 1.0:
            logits = logits * self.scale
        return logits if self.softcap is None else torch.tanh(logits / self.softcap) * self.softcap

    def slope(self, transformed: torch.Tensor) -> torch.Tensor:
        """Return the derivative of the map, from its results."""
        if self.softcap is None:
            return torch.full_like(transformed, self.scale)
        return (1.0 - (transformed / self.softcap).square()) * self.scale


def candidate_transforms(config: Any) -> list[LogitTransform]:
    """Return every map that a model's configuration may mean, the identity first; the order is that of its names.

    Names do not say how a number is used: Granite divides by its `logits_scaling`, HyperCLOVA-X multiplies by it.
    """
    text = config.get_text_config()
    numbers = [
        float(value)
        for name, value in vars(text).items()
        if _SHAPES_LOGITS.fullmatch(name) and isinstance(value, int | float) and value not in (0, 1)
    ]
    if getattr(text, "dim_model_base", None):  # MiniCPM scales the states before the output layer
        numbers.append(text.dim_model_base / text.hidden_size)
    scales = [1.0, *numbers, *(1.0 / number for number in numbers)]
    return [LogitTransform(scale, softcap) for softcap, scale in product([None, *numbers], scales)]
