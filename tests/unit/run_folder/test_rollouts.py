"""What is written of a step's rollouts."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsys.config.schema import LoggingConfig
from rlsys.run_folder.rollouts import RolloutWriter
from rlsys.types import (
    Coefficients,
    Experience,
    ExperienceRow,
    Reward,
    RewardPart,
    RolloutGroup,
    Trajectory,
    ValueEstimate,
)
from tests.unit.records import group, reward, scored, summary, text_of

FAILED = Reward(None, {"match": RewardPart(None, "error", "ValueError: no"), "length": RewardPart(-1.0, "ok")}, "error")
NOTHING = Experience((), (), None, None, 0, Coefficients(0.0, 0.0))


def write(writer: RolloutWriter, step: int, groups: Any, trained: Sequence[int], experience: Experience) -> None:
    asyncio.run(writer.write(step, groups, trained, experience))


def trajectory(size: int) -> Trajectory:
    """Two tokens of a prompt and `size` sampled ones."""
    total = 2 + size
    logprobs = -1.0 - 0.2 * np.arange(total).astype(np.float32)
    return Trajectory(np.arange(total), np.arange(total) >= 2, logprobs, (), "stop", engine=0)


def make(folder: Path, asked: list[int] | None = None, **options: Any) -> RolloutWriter:
    async def fetch(of: RolloutGroup) -> Sequence[Trajectory]:
        if asked is not None:
            asked.append(of.group_id)
        return [trajectory(one.num_response_tokens) for one in of.summaries]

    async def estimates(ref: Any) -> Sequence[ValueEstimate]:
        return [ValueEstimate(*[np.arange(2.0 + size)] * 3) for size in ref]

    return RolloutWriter(folder, LoggingConfig(**options), text_of, fetch, estimates)


def experience(rows: Sequence[tuple[int, int, float]], estimates: Any = None) -> Experience:
    made = tuple(ExperienceRow(i, g, s, advantage, 1.0, 5, 3) for i, (g, s, advantage) in enumerate(rows))
    return Experience((made,), (), None, estimates, 0, Coefficients(0.0, 0.0))


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_a_line_for_every_trajectory(tmp_path: Path) -> None:
    groups = [
        group(3, [summary(4, version=6), summary(9, finish="length")], text="naïve?"),
        group(4, [summary(1)], text="dropped"),
    ]
    made = [scored(groups[0], [reward(1.0), FAILED]), scored(groups[1], [reward(0.0)])]
    write(make(tmp_path, token_groups=1), 7, made, [0], experience([(0, 0, 0.123456)]))
    path = tmp_path / "rollouts" / "step-000007.jsonl"
    assert "naïve?" in path.read_text(encoding="utf-8")
    first, failed, dropped = lines(path)
    tokens = first.pop("tokens")
    assert first == {
        "group_id": 3,
        "prompt_index": 13,
        "prompt": "naïve?",
        "response": "2",
        "response_tokens": 4,
        "finish_reason": "stop",
        "policy_version": 6,
        "engine": 0,
        "started": 0.0,
        "finished": 0.0,
        "reward": 1.0,
        "outcome": "ok",
        "parts": {"exact_match": {"value": 1.0, "outcome": "ok"}},
        "advantage": 0.1235,
    }
    assert tokens == {"ids": [2, 3, 4, 5], "logprobs": [-1.4, -1.6, -1.8, -2.0]}
    assert failed["advantage"] is None  # without a valid reward it was not trained
    assert failed["parts"]["match"] == {"value": None, "outcome": "error", "detail": "ValueError: no"}
    assert (dropped["advantage"], "tokens" in dropped) == (None, False)


def test_advantages_of_tokens_where_they_have_their_own(tmp_path: Path) -> None:
    made = experience([(0, 0, 0.0)], estimates=([3],))
    write(make(tmp_path), 1, [scored(group(0, [summary(3)]), [reward(1.0)])], [0], made)
    (row,) = lines(tmp_path / "rollouts" / "step-000001.jsonl")
    assert row["tokens"]["advantages"] == [2.0, 3.0, 4.0]
    assert row["advantage"] is None


def test_half_a_character_is_written_as_its_escape(tmp_path: Path) -> None:
    """As `json.loads` makes one of a model's JSON."""
    odd = replace(reward(1.0), extra={"parsed": "\ud83d!"})
    write(make(tmp_path), 1, [scored(group(0, [summary(3)], text="naïve"), [odd])], [], NOTHING)
    (row,) = lines(tmp_path / "rollouts" / "step-000001.jsonl")
    assert (row["prompt"], row["extra"]) == ("naïve", {"parsed": "\ud83d!"})


def test_token_arrays_are_fetched_of_few_groups(tmp_path: Path) -> None:
    asked: list[int] = []
    groups = [scored(group(number, [summary(1)]), [reward(1.0)]) for number in range(9)]
    write(make(tmp_path, asked, token_groups=2), 1, groups, [], NOTHING)
    assert asked == [0, 1]


@pytest.mark.parametrize(("every", "written"), [(1, [1, 2, 3, 4]), (2, [2, 4]), (0, [])])
def test_how_often(tmp_path: Path, every: int, written: list[int]) -> None:
    writer = make(tmp_path, rollouts_every=every)
    for step in (1, 2, 3, 4):
        write(writer, step, [scored(group(0, [summary(1)]), [reward(1.0)])], [0], NOTHING)
    names = [f"step-{step:06d}.jsonl" for step in written]
    assert sorted(path.name for path in tmp_path.glob("rollouts/*")) == names
