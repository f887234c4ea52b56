"""Tokens chosen among all tokens of an update, by hand and compared with TRL."""

from __future__ import annotations

import pytest
import torch

from rlsys.algorithms.policy_losses import registry
from rlsys.algorithms.selection import UpdateTokens, covariances, top_entropy


def tokens(logprobs: list[float], advantages: list[float], entropies: list[float] | None = None) -> UpdateTokens:
    columns = [torch.tensor(column) for column in (logprobs, entropies or [0.0] * len(logprobs), advantages)]
    return UpdateTokens(*columns, seed=0)


def test_covariances_by_hand() -> None:
    # Means -2 and 0: (1 * 1, 0 * -1, -1 * 0)
    assert covariances(tokens([-1.0, -2.0, -3.0], [1.0, -1.0, 0.0])).tolist() == [1.0, 0.0, 0.0]


def test_the_top_fifth_by_entropy_by_hand() -> None:
    entropies = [0.1, 0.9, 0.5, 0.2, 0.3]
    # Quantile 0.8 of five values lies at position 3.2: 0.5 + 0.2 * 0.4 = 0.58.
    assert top_entropy(tokens([0.0] * 5, [0.0] * 5, entropies), 0.2).tolist() == [False, True, False, False, False]
    assert top_entropy(tokens([0.0] * 5, [0.0] * 5, entropies), 1.0).all()


def test_the_top_by_entropy_is_trl_s() -> None:
    """TRL: GRPOTrainer.get_high_entropy_mask, on one process."""
    trl = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL comes with the dev extra")
    from types import SimpleNamespace

    one = SimpleNamespace(pad_across_processes=lambda x, **_: x, gather=lambda x: x)
    generator = torch.Generator().manual_seed(0)
    for _ in range(200):
        entropies = torch.rand(4, 5, generator=generator)
        mask = torch.arange(5)[None] < torch.randint(0, 6, (4, 1), generator=generator)
        theirs = trl.GRPOTrainer.get_high_entropy_mask(SimpleNamespace(accelerator=one), entropies, mask.int(), 0.7)
        flat = entropies[mask].tolist()
        ours = torch.zeros_like(mask)
        ours[mask] = top_entropy(tokens([0.0] * len(flat), [0.0] * len(flat), flat), 0.3)
        assert torch.equal(ours, theirs)


def test_kl_cov_takes_the_largest_and_clip_cov_draws_from_the_band() -> None:
    given = tokens([-1.0, -5.0, -2.0, -4.0], [4.0, -4.0, 0.0, 0.0])  # covariances 8, 8, 0, 0
    largest, by_draw = (registry.fact(name, "selects", None) for name in ("kl_cov", "clip_cov"))
    assert largest(given, ratio=0.5).tolist() == [True, True, False, False]
    drawn = [by_draw(given, ratio=0.25, cov_low=1.0, cov_high=9.0).tolist() for _ in range(3)]
    assert drawn[0] == drawn[1] == drawn[2]  # every rank draws the same
    assert sum(drawn[0]) == 1
    assert drawn[0][:2].count(True) == 1
    assert by_draw(given, ratio=0.25, cov_low=9.0, cov_high=10.0).tolist() == [False] * 4
    empty = tokens([], [])
    assert largest(empty).tolist() == by_draw(empty).tolist() == top_entropy(empty, 0.2).tolist() == []
