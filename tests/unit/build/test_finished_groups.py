"""Which finished groups of a checkpoint a run goes on with: those that it would make itself, and not too old ones."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsys.build.finished_groups import FinishedGroups
from rlsys.config.compose import load_config
from rlsys.data.order import EpochOrder
from rlsys.data.stream import PromptStream
from rlsys.run_folder.checkpoint import RunState
from rlsys.run_folder.finished_groups import FinishedGroup, read_groups
from rlsys.types import Prompt, ReferenceScores, TextRef, Trajectory, TrajectoryRef, VersionSpan
from tests.unit.records import group, reward, scored, summary

PROMPTS = [Prompt(number, "", np.array([number], dtype=np.int32)) for number in range(9)]


class Store:
    async def read(self, ref: Any, *, who: str, what: str) -> Any:
        return ref

    def put(self, value: Any) -> Any:
        return value


def parts(*overrides: str) -> FinishedGroups:
    """References are the values themselves."""

    async def fetch(rollout: Any) -> list[Trajectory]:
        tokens = np.array([1, 2, 3], dtype=np.int32)
        return [
            Trajectory(tokens, tokens > 1, tokens.astype(np.float32), (VersionSpan(s.policy_version, 1, 3),), "stop", 0)
            for s in rollout.summaries
        ]

    async def text(ref: TextRef | None) -> str:
        return "" if ref is None else ref.chunk[ref.index]

    config = load_config(["train.max_staleness=2", *overrides])
    return FinishedGroups(config, fetch, text, Store())


def saved(tmp_path: Path, *versions: int) -> list[FinishedGroup]:
    reference = ReferenceScores([np.zeros(3, dtype=np.float32)] * 2, [0.5, 0.5])
    groups = [
        (7 - n, scored(group(n, [summary(2, version=v)] * 2), [reward(1.0), reward(0.0)], reference=reference))
        for n, v in enumerate(versions)
    ]
    asyncio.run(parts().write(tmp_path, groups))
    return read_groups(tmp_path)


STATE = RunState(step=5, prompt_cursor=8, prompts_finished=[5, 6, 7], prompts_digest="same")


def test_they_come_back_as_groups_of_the_new_run_oldest_first(tmp_path: Path) -> None:
    found = saved(tmp_path, 5, 4, 3)
    prompts = PromptStream(PROMPTS, EpochOrder(9, [0], shuffle=False), cursor=8, pending=[1, 5, 6, 7])
    resumed = parts().resume(found, replace(STATE, prompts_digest=prompts.digest), prompts)
    assert prompts.pending == [1]
    assert [position for position, _ in resumed.finished] == [5, 6, 7]
    assert resumed.versions == [3, 4, 5]
    (position, first), *_ = resumed.finished
    assert (position, first.group_id, first.rollout.prompt.index) == (5, 0, 5)
    assert [each.total for each in first.rewards] == [1.0, 0.0]
    assert first.rewards[1].response == TextRef(["2", "2"], 1)
    assert [ref.index for ref in first.rollout.trajectories] == [0, 1]
    assert isinstance(first.rollout.trajectories[0], TrajectoryRef)
    assert first.reference is not None
    assert first.reference.kl_sums == [0.5, 0.5]


def test_an_engine_may_have_been_ahead_of_the_step(tmp_path: Path) -> None:
    prompts = PromptStream(PROMPTS, EpochOrder(9, [0], shuffle=False), cursor=8, pending=[7])
    resumed = parts().resume(saved(tmp_path, 6), replace(STATE, prompts_digest=""), prompts)
    assert resumed.versions == [5]


def test_a_checkpoint_without_a_ledger_counts_as_trained_what_is_not_pending(tmp_path: Path) -> None:
    prompts = PromptStream(PROMPTS, EpochOrder(9, [0], shuffle=False), cursor=8, pending=[3, 7])
    resumed = parts().resume([], RunState(step=3, prompt_cursor=8, prompts_pending=[3, 7]), prompts)
    assert resumed.ledger == {"trained": 6}
    assert prompts.pending == [3, 7]


@pytest.mark.parametrize(
    ("override", "num_kept"),
    [
        ("learner.lr=1e-7", 3),
        ("rollout.num_workers=4", 3),
        ("train.max_staleness=1", 2),
        ("rollout.temperature=0.7", 0),
        ("train.samples_per_prompt=3", 0),
        ("rewards=[{name:exact_match,weight:2.0}]", 0),
        ("algorithm.kl.coef=0.123", 0),
    ],
)
def test_what_would_be_made_in_another_way_now_is_made_again(tmp_path: Path, override: str, num_kept: int) -> None:
    assert len(parts(override).usable(saved(tmp_path, 5, 4, 3), STATE, "same")) == num_kept


def test_groups_of_other_prompts_are_not_used(tmp_path: Path) -> None:
    found = saved(tmp_path, 5)
    assert parts().usable(found, STATE, "other") == []
    assert len(parts().usable(found, replace(STATE, prompts_digest=""), "other")) == 1
