"""A step's rows are divided over ranks by tokens, groups together."""

from __future__ import annotations

from rlsys.learner.rank_group import divide
from rlsys.types import ExperienceRow


def rows_of(lengths: list[tuple[int, int, int]]) -> list[ExperienceRow]:
    """Build rows from (group, prompt tokens, response tokens)."""
    return [ExperienceRow(i, g, 0, 0.0, 1.0, prompt + tokens, tokens) for i, (g, prompt, tokens) in enumerate(lengths)]


def test_ranks_get_whole_groups() -> None:
    # With one prompt group 0 takes 10 + 1 + 1 tokens, group 1 takes 2 + 3 + 3, group 2 takes 2 + 4.
    rows = rows_of([(0, 10, 1), (1, 2, 3), (0, 10, 1), (1, 2, 3), (2, 2, 4), (3, 1, 1)])
    assert divide(rows, 2) == [[0, 2, 5], [1, 3, 4]]


def test_few_groups_are_divided() -> None:
    shares = divide(rows_of([(0, 4, 5)] * 8), 2)
    assert [len(share) for share in shares] == [4, 4]
    assert sorted(shares[0] + shares[1]) == list(range(8))
    assert divide(rows_of([(0, 4, 5)] * 3), 1) == [[0, 1, 2]]
    assert divide([], 2) == [[], []]
