"""What a token of each trajectory weighs (tolerance 1e-12), and that the whole does not depend on its parts."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsys.algorithms.aggregation import registry

LENGTHS = [3, 1, 4]
GROUPS = [0, 0, 5]
NAMES = ["token_mean", "sequence_mean", "prompt_mean", "local_token_mean"]
ALL = pytest.mark.parametrize("name", NAMES)


def weights(name: str, lengths: list[int], groups: list[int], **options: int) -> list[float]:
    return registry.bind(name, options)(torch.tensor(lengths), torch.tensor(groups, dtype=torch.int64)).tolist()


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("token_mean", [1 / 8] * 3),  # 3 + 1 + 4 tokens
        ("sequence_mean", [1 / 9, 1 / 3, 1 / 12]),  # three trajectories
        ("prompt_mean", [1 / 8, 1 / 8, 1 / 8]),  # two prompts of four tokens each
        ("local_token_mean", [1 / 8] * 3),
    ],
)
def test_weights_by_hand(name: str, expected: list[float]) -> None:
    assert weights(name, LENGTHS, GROUPS) == pytest.approx(expected, rel=1e-12)


def test_prompts_of_unequal_tokens_weigh_the_same() -> None:
    # Group 0 has 3 + 1 tokens, group 1 two: 1 / (4 * 2) and 1 / (2 * 2).
    assert weights("prompt_mean", [3, 1, 2], [0, 0, 1]) == pytest.approx([1 / 8, 1 / 8, 1 / 4], rel=1e-12)


def test_constant_length_by_hand() -> None:
    assert weights("constant_length", LENGTHS, GROUPS, length=10) == pytest.approx([1 / 30] * 3, rel=1e-12)


@ALL
@given(lengths=st.lists(st.integers(0, 9), min_size=1, max_size=8), data=st.data())
def test_order_does_not_matter_and_a_constant_loss_averages_to_itself(
    name: str, lengths: list[int], data: st.DataObject
) -> None:
    groups = data.draw(st.lists(st.integers(0, 3), min_size=len(lengths), max_size=len(lengths)))
    found = weights(name, lengths, groups)
    order = data.draw(st.permutations(range(len(lengths))))
    turned = weights(name, [lengths[i] for i in order], [groups[i] for i in order])
    assert turned == pytest.approx([found[i] for i in order])
    total = sum(weight * length for weight, length in zip(found, lengths, strict=True))
    if all(lengths):
        assert total == pytest.approx(1.0)  # a loss of 1 at every token has the mean 1
    else:
        assert total <= 1.0 + 1e-9


@ALL
def test_nothing_to_train_weighs_nothing_that_is_not_finite(name: str) -> None:
    assert torch.isfinite(torch.tensor(weights(name, [0, 0], [0, 1]))).all()
    assert weights(name, [], []) == []


def test_only_the_local_one_says_so() -> None:
    assert [name for name in registry.names() if registry.fact(name, "local", False)] == ["local_token_mean"]
