"""Rollouts on their way into a report: which are taken, and what the page holds of each."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.commands.report.rollouts import CHUNK_CHARACTERS, Rollouts, collect, rollouts_per_step
from rlsys.errors import DataError
from tests.run_folder import Recipe, length_of, reward_of, write_lines, write_run


def letters(ids: Sequence[int]) -> list[str]:
    """A tokenizer with an `a` for 0, a `b` for 1, and so on."""
    return [chr(97 + token) for token in ids]


def unread(ids: Sequence[int]) -> None:
    """No tokenizer."""
    return


def texts(rollouts: Rollouts) -> list[dict[str, Any]]:
    return [row for chunk in rollouts.chunks for row in json.loads(chunk)]


def one(tmp_path: Path, row: dict[str, Any], decode: Any = letters) -> tuple[Rollouts, dict[str, Any]]:
    path = tmp_path / "step-000007.jsonl"
    write_lines(path, [row])
    rollouts = collect([path], 10, decode, json.dumps)
    return rollouts, texts(rollouts)[0]


def test_rollouts_per_step_by_hand() -> None:
    assert rollouts_per_step([8, 8, 8], 100, 4) == [8, 8, 8]  # all
    assert rollouts_per_step([8, 8, 8], 12, 4) == [4, 4, 4]
    assert rollouts_per_step([2, 20, 20], 22, 2) == [2, 10, 10]  # what the small one leaves is shared
    assert rollouts_per_step([8, 8, 8, 8, 8], 12, 4) == [4, 0, 4, 0, 4]  # no group fits into 12 / 5
    assert rollouts_per_step([8, 8, 8], 3, 4) == [0, 0, 3]  # one group, of the last step
    assert rollouts_per_step([8, 8], 0, 4) == [0, 0]
    assert rollouts_per_step([], 5, 1) == []


@given(sizes=st.lists(st.integers(1, 40), min_size=1, max_size=12), limit=st.integers(0, 300), group=st.integers(1, 8))
def test_rollouts_per_step_stay_within_the_limit_and_the_sizes(sizes: list[int], limit: int, group: int) -> None:
    found = rollouts_per_step(sizes, limit, group)
    assert sum(found) <= max(limit, 0)
    assert all(0 <= share <= size for share, size in zip(found, sizes, strict=True))
    assert sum(sizes) > limit or found == sizes
    assert limit == 0 or found[-1] > 0  # the last step is always there


def test_whole_groups_are_taken_the_first_of_each_step(tmp_path: Path) -> None:
    recipe = Recipe(num_steps=5, num_groups=4, num_samples=4)
    files = sorted((write_run(tmp_path / "run", recipe) / "rollouts").iterdir())
    rollouts = collect(files, 50, unread, json.dumps)  # 10 a step: two groups of four
    assert rollouts.total == 80
    assert len(rollouts.index["step"]) == 40
    assert rollouts.index["step"] == [step for step in range(1, 6) for _ in range(8)]
    assert rollouts.index["group"][:8] == [0, 0, 0, 0, 1, 1, 1, 1]


def test_every_column_of_every_rollout(tmp_path: Path) -> None:
    recipe = Recipe(num_steps=3, num_groups=2, num_samples=4)
    files = sorted((write_run(tmp_path / "run", recipe) / "rollouts").iterdir())
    rollouts = collect(files, 1000, unread, json.dumps)
    places = [(step, group, sample) for step in (1, 2, 3) for group in (0, 1) for sample in range(4)]
    assert rollouts.index["reward"] == [reward_of(*place) for place in places]
    assert rollouts.index["length"] == [length_of(step, sample) for step, _, sample in places]
    outcomes = [rollouts.names["outcome"][place] for place in rollouts.index["outcome"]]
    assert [place for place, outcome in zip(places, outcomes, strict=True) if outcome == "timeout"] == [
        (2, 0, 0),
        (2, 1, 0),
    ]
    assert len(rollouts.prompts) == 6  # one a group, not one a rollout
    assert rollouts.prompts[1] == [["system", "Reason first."], ["user", rollouts.prompts[1][1][1]]]
    assert texts(rollouts)[0]["parts"] == [["math_answer", 1.0, "ok", ""], ["format", 1.0, "ok", ""]]
    assert texts(rollouts)[3]["seconds"] == 1.28


def test_long_texts_lie_in_several_chunks(tmp_path: Path) -> None:
    length = CHUNK_CHARACTERS // 3
    write_lines(tmp_path / "step-000001.jsonl", [{"group_id": n, "response": str(n) * length} for n in range(5)])
    rollouts = collect([tmp_path / "step-000001.jsonl"], 10, unread, json.dumps)
    assert rollouts.starts == [0, 3]  # the third fills the first
    assert [row["response"][0] for row in texts(rollouts)] == ["0", "1", "2", "3", "4"]


def test_missing_keys_and_what_is_no_number(tmp_path: Path) -> None:
    rollouts, text = one(tmp_path, {"response": None, "reward": float("nan"), "parts": {"x": None, "y": {"value": 1}}})
    assert {name: column[0] for name, column in rollouts.index.items()} == {
        "step": 7,
        "reward": None,
        "advantage": None,
        "prompt": 0,
        "tokens": 0,
        "length": None,
        "engine": None,
        "version": None,
        "group": None,
        "outcome": 0,
        "ended": 0,
    }
    assert rollouts.names == {"outcome": ["unknown"], "ended": ["unknown"]}
    assert text == {"response": "", "parts": [["x", None, "", ""], ["y", 1.0, "", ""]]}


def test_tokens_are_decoded_and_rounded(tmp_path: Path) -> None:
    tokens = {"ids": [0, 2], "logprobs": [-0.123456, float("-inf")], "advantages": [0.5, -1.0]}
    rollouts, text = one(tmp_path, {"response": "ac", "advantage": 0.25, "tokens": tokens})
    assert text["tokens"] == {"pieces": ["a", "c"], "logprobs": [-0.1235, None], "advantages": [0.5, -1.0]}
    assert rollouts.index["tokens"] == [1]
    assert rollouts.num_undecoded == 0
    assert rollouts.largest_advantage == 1.0  # a token's, by size


@pytest.mark.parametrize(
    "tokens", [{"ids": [0]}, {"ids": [0], "logprobs": [0.0, 0.0]}, {"ids": None, "logprobs": None}, "none", {}]
)
def test_tokens_that_do_not_fit_together_are_left_out(tmp_path: Path, tokens: Any) -> None:
    rollouts, text = one(tmp_path, {"response": "a", "tokens": tokens})
    assert "tokens" not in text
    assert rollouts.num_undecoded == 0


def test_tokens_without_a_tokenizer_are_counted(tmp_path: Path) -> None:
    rollouts, text = one(tmp_path, {"response": "a", "tokens": {"ids": [0], "logprobs": [0.0]}}, unread)
    assert "tokens" not in text
    assert rollouts.num_undecoded == 1


def test_a_broken_row_is_named(tmp_path: Path) -> None:
    path = tmp_path / "step-000001.jsonl"
    path.write_text('{"group_id": 1}\nnot json\n{"group_id": 2}\n')
    with pytest.raises(DataError, match=r"step-000001\.jsonl, line 2"):
        collect([path], 10, unread, json.dumps)
