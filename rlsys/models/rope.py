"""Rotary embeddings whose frequencies depend on the length of the input, pinned to the engines' choice.

transformers chooses them by the longest position of a whole input, so a row's numbers would depend on its company in
the microbatch. vLLM chooses once, by the context that the engine is started with.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from rlsys.errors import ConfigError

# transformers' name for embeddings that use the buffer of frequencies as it is.
PINNED = "default"


@torch.no_grad()
def pin_rope(hf: Any, max_tokens: int) -> None:
    """Fix the frequencies of the rotary embeddings of `hf` in place, as engines with a context of `max_tokens` do.

    Raises:
        ConfigError: the model would compute others than the engines.
    """
    for parameters in _parameters(hf.config):
        kind = str(parameters.get("rope_type"))
        if kind == "longrope":
            modules = [module for module in hf.modules() if getattr(module, "rope_type", None) == kind]
            _pin_longrope(hf, modules, parameters, max_tokens)
        elif kind == "dynamic":
            limit = hf.config.get_text_config().max_position_embeddings
            _check_dynamic(type(hf).__name__, limit, parameters, max_tokens)


def depends_on_length(config: Any) -> bool:
    """Return whether a model's rotary embeddings may differ with the length of the input."""
    return any(parameters.get("rope_type") in ("longrope", "dynamic") for parameters in _parameters(config))


def _parameters(config: Any) -> list[Mapping[str, Any]]:
    """Return the parameters of rotary embeddings: one set, or one per kind of layers."""
    given: Mapping[str, Any] = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return [given] if "rope_type" in given else [part for part in given.values() if isinstance(part, Mapping)]


def _pin_longrope(hf: Any, modules: list[Any], parameters: Mapping[str, Any], max_tokens: int) -> None:
    text = hf.config.get_text_config()
    original = parameters["original_max_position_embeddings"]
    is_long = max_tokens > original
    # vLLM's formula (arXiv:2402.13753); it knows no other factor of cosines and sines than these.
    scale = max(text.max_position_embeddings / original, 1.0)
    factor = parameters.get("long_mscale" if is_long else "short_mscale")
    if factor is None:
        factor = math.sqrt(1 + math.log(scale) / math.log(original))
    if is_long and not modules:
        raise ConfigError(_refusal(hf, max_tokens, original, "its own code computes rotary embeddings"))
    for module in modules:
        divisors = torch.tensor(parameters["long_factor" if is_long else "short_factor"])
        width = 2 * len(divisors)
        plain = parameters["rope_theta"] ** (torch.arange(0, width, 2, dtype=torch.float32) / width)
        frequencies = 1.0 / (divisors * plain)
        module.inv_freq.copy_(frequencies)
        module.attention_scaling = factor
        module.rope_type = PINNED
        for last in (2, max_tokens - 1):  # in short and in long company
            positions = torch.tensor([[0, 1, last]])
            cosines, _ = module(torch.zeros(1), positions)
            expected = (positions[..., None] * frequencies).cos() * factor
            if not torch.allclose(cosines[..., : len(divisors)], expected, atol=1e-4):
                raise ConfigError(_refusal(hf, max_tokens, original, "its embeddings follow another rule than vLLM's"))


def _refusal(hf: Any, max_tokens: int, original: int, why: str) -> str:
    return (
        f"{type(hf).__name__} has rope_type=longrope, which changes beyond {original} tokens, and {why}: learner and "
        f"engines would disagree. The longest trajectory has {max_tokens} tokens: lower data.max_prompt_tokens or "
        f"rollout.max_response_tokens until it fits into {original}"
    )


def _check_dynamic(name: str, limit: int, parameters: Mapping[str, Any], max_tokens: int) -> None:
    """Raise ConfigError where frequencies would grow in the learner, or where they have grown in the engines."""
    if max_tokens > limit or parameters.get("max_trained_positions", limit) != limit:
        raise ConfigError(
            f"{name} has rope_type=dynamic, which transformers and vLLM compute in the same way only up to {limit} "
            f"tokens (max_position_embeddings) and without max_trained_positions; the longest trajectory has "
            f"{max_tokens} tokens"
        )
