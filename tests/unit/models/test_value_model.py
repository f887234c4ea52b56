"""The critic's model: values of the states before tokens."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rlsys.models.packing import LAYOUTS, TokenBatch, TokenRow, token_batch
from rlsys.models.value import ValueModel, load_critic
from tests.unit.models.test_trial import copy_of

IDS = [np.array([5, 6, 7, 8, 9]), np.array([9, 8, 7])]
MASKS = [np.array([False, False, True, True, True]), np.array([False, True, True])]


def batch(ids: list[np.ndarray], layout: str) -> TokenBatch:
    return token_batch(
        [TokenRow(i, mask, group) for group, (i, mask) in enumerate(zip(ids, MASKS, strict=True))], layout
    )


def test_a_fresh_critic_values_everything_at_zero(model_folder: Path) -> None:
    critic = load_critic(str(model_folder), torch.float32, max_tokens=64)
    values = critic(batch(IDS, critic.layout))
    assert values.shape == (2, 5)
    assert not values.any()
    assert values.requires_grad


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_value_is_of_the_state_before_its_token(model_folder: Path, layout: str) -> None:
    """Changing token t changes the values after t, not its own: it must not see what it is a baseline for."""
    critic = load_critic(str(model_folder), torch.float32, max_tokens=64, packing=layout)
    torch.nn.init.normal_(critic.head.weight)
    other = [np.array([5, 6, 7, 33, 9]), IDS[1]]
    (first, second) = (batch(ids, layout) for ids in (IDS, other))
    with torch.no_grad():
        one, two = (critic(b) for b in (first, second))
    assert torch.allclose(one[0, :4], two[0, :4], atol=1e-6)
    assert (one[0, 4] - two[0, 4]).abs() > 1e-4
    assert not one[~first.loss_mask].any()


def test_states_may_leave_the_decoder_in_another_width() -> None:
    critic = ValueModel(copy_of("opt", hidden_size=128, word_embed_proj_dim=64, num_attention_heads=2))
    assert critic(batch(IDS, critic.layout)).shape == (2, 5)
