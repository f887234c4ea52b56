"""Activation checkpointing: layers compute their activations again in the backward instead of keeping them."""

from __future__ import annotations

from typing import Any

from torch import nn


def checkpoint_activations(model: Any) -> None:
    """Make every layer of a transformers model in eval mode checkpoint its activations, without any dropout.

    transformers looks at a layer's `training` flag, so the layers that checkpoint are in train mode. The modules inside
    them stay in eval mode: the ratio of two forwards with dropout, or with a router that samples, would be noise.

    Raises:
        ValueError: the model does not support it.
    """
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    for module in model.modules():
        if getattr(module, "gradient_checkpointing", False):
            module.training = True
            _drop_nothing(module)


def _drop_nothing(module: nn.Module) -> None:
    """Set the rates of dropout to 0 that a layer passes to functions together with its own `training` flag."""
    for name, value in vars(module).items():
        if "drop" in name and isinstance(value, float):
            setattr(module, name, 0.0)
