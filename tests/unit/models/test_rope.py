"""Rotary embeddings that depend on the input's length: a row's numbers do not depend on its company."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from rlsys.errors import ConfigError
from rlsys.models.packing import TokenRow, token_batch
from rlsys.models.policy import PolicyModel
from rlsys.models.rope import pin_rope
from rlsys.models.small_copy import small_copy

ORIGINAL = 16
FACTORS = {"short_factor": [1.0 + 0.1 * i for i in range(16)], "long_factor": [2.0 + 0.3 * i for i in range(16)]}
LONGROPE = {"rope_type": "longrope", "rope_theta": 10000.0, "original_max_position_embeddings": ORIGINAL, **FACTORS}
SHAPE = {"hidden_size": 128, "num_attention_heads": 4, "num_key_value_heads": 2, "sliding_window": None}


def config(family: str, rope: dict[str, Any]) -> PreTrainedConfig:
    extra = {"original_max_position_embeddings": ORIGINAL} if family == "phi3" else {}
    return AutoConfig.for_model(family, rope_parameters=rope, max_position_embeddings=64, **SHAPE, **extra)


def model(family: str = "phi3", rope: dict[str, Any] = LONGROPE) -> Any:
    return small_copy(config(family, rope), AutoModelForCausalLM.from_config)


def row(length: int, group: int) -> TokenRow:
    ids = np.random.default_rng(group).integers(1, 60, size=length)
    return TokenRow(ids, np.arange(length) >= 3, group)


@pytest.mark.parametrize("layout", ["padded", "packed"])
@pytest.mark.parametrize(("max_tokens", "is_long"), [(ORIGINAL, False), (40, True)])
def test_longrope_is_chosen_once(layout: str, max_tokens: int, is_long: bool) -> None:
    """By the longest trajectory of the run; the short choice beside a longer row, the long one alone."""
    hf = model()
    pin_rope(hf, max_tokens)
    policy = PolicyModel(hf, layout)
    with torch.no_grad():
        alone, _ = policy(token_batch([row(10, 0)], layout), 1.0)
        beside, _ = policy(token_batch([row(10, 0), row(35, 1)], layout), 1.0)
        # transformers chooses by the longest position: here by hand, for all tokens.
        other = model()
        rotary = other.model.rotary_emb
        rotary.rope_type = "default"
        rotary.inv_freq /= torch.tensor(FACTORS["long_factor" if is_long else "short_factor"])
        rotary.inv_freq *= torch.tensor(FACTORS["short_factor"])
        expected = torch.log_softmax(other(torch.from_numpy(row(10, 0).token_ids)[None]).logits[0], dim=-1)
    targets = torch.from_numpy(row(10, 0).token_ids)[1:, None]
    assert torch.allclose(alone[0, :10], beside[0, :10], atol=1e-4)
    assert torch.allclose(alone[0, 3:10], expected[:-1].gather(1, targets)[2:, 0], atol=1e-4)


def test_without_pinning_the_company_would_matter() -> None:
    policy = PolicyModel(model(), "padded")
    with torch.no_grad():
        alone, _ = policy(token_batch([row(10, 0)], "padded"), 1.0)
        beside, _ = policy(token_batch([row(10, 0), row(35, 1)], "padded"), 1.0)
    assert (alone[0, :10] - beside[0, :10]).abs().max() > 0.1


def test_longrope_that_follows_another_rule_than_the_engines_is_refused() -> None:
    rope = {**LONGROPE, "short_mscale": 1.2, "long_mscale": 1.3}
    pin_rope(model("phimoe", rope), ORIGINAL)
    with pytest.raises(ConfigError, match=r"PhimoeForCausalLM has rope_type=longrope, which changes beyond 16 tokens"):
        pin_rope(model("phimoe", rope), ORIGINAL + 1)


def test_dynamic_frequencies_must_not_grow() -> None:
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 10000.0}
    pin_rope(model("llama", rope), 64)
    with pytest.raises(ConfigError, match=r"only up to 64 tokens .* the longest trajectory has 65"):
        pin_rope(model("llama", rope), 65)
    with pytest.raises(ConfigError, match="max_trained_positions"):
        pin_rope(model("llama", {**rope, "max_trained_positions": 32}), 64)
