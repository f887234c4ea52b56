"""Finished groups come back from a checkpoint's folder as they were, to the bit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rlsys.errors import NoRoomError
from rlsys.run_folder.finished_groups import FinishedGroup, read_groups, write_group
from rlsys.run_folder.layout import FINISHED
from rlsys.types import EpisodeRecord, PolicyTurn, Reward, RewardPart, Trajectory, TrajectorySummary, VersionSpan

EPISODE = EpisodeRecord(
    "max_turns",
    [{"role": "user", "content": "a"}],
    [{"role": "assistant", "content": "b", "tool_calls": [{"id": "c"}]}],
    (PolicyTurn(3, 5, 0.1 + 0.2, 1.0, 2.0), PolicyTurn(7, 8, None, 1.0, 2.0)),
    0.5,
    num_calls=1,
    metrics={"d": 1.0},
    state={"e": [1]},
    detail="f",
)


def finished(position: int, num_samples: int, with_reference: bool) -> FinishedGroup:
    rng = np.random.default_rng(position)
    trajectories = []
    for number in range(num_samples):
        size = 4 + number
        trajectories.append(
            Trajectory(
                rng.integers(0, 2**31 - 1, size, dtype=np.int32),
                np.arange(size) > 2,
                rng.standard_normal(size).astype(np.float32),
                (VersionSpan(3, 3, 4), VersionSpan(4, 4, size)),
                "length",
                number,
                EPISODE if number == 1 else None,
            )
        )
    parts = {"a": RewardPart(0.1 + 0.2, "ok"), "b": RewardPart(None, "timeout", "after 5 s")}
    return FinishedGroup(
        position=position,
        trajectories=trajectories,
        summaries=[TrajectorySummary(t.num_tokens, 1, "length", 3, 0, True, 1.5, 2.5) for t in trajectories],
        rewards=[Reward(0.1 + 0.2, parts, "ok", extra={"seen": [1, "x"]})] * num_samples,
        texts=["caf\u00e9 \U0001f600"] * num_samples,
        baseline=Reward(None, parts, "error") if with_reference else None,
        ref_logprobs=[t.behavior_logprobs * 2 for t in trajectories] if with_reference else None,
        kl_sums=[0.25] * num_samples if with_reference else [],
        logged={"length": 3.5},
        made_with="0123",
    )


@pytest.mark.parametrize("with_reference", [True, False])
def test_what_is_read_is_what_was_written(tmp_path: Path, with_reference: bool) -> None:
    written = [finished(12, 3, with_reference), finished(2, 1, with_reference)]
    for each in written:
        write_group(tmp_path, each)
    found = read_groups(tmp_path)
    assert [each.position for each in found] == [2, 12]
    for after, before in zip(found, reversed(written), strict=True):
        for one, other in zip(after.trajectories, before.trajectories, strict=True):
            for name in ("token_ids", "loss_mask", "behavior_logprobs"):
                read, expected = getattr(one, name), getattr(other, name)
                assert read.dtype == expected.dtype
                assert np.array_equal(read, expected)
            assert (one.versions, one.finish_reason, one.engine) == (other.versions, "length", other.engine)
            assert one.episode == other.episode
        assert (after.ref_logprobs is None) == (before.ref_logprobs is None)
        for mine, theirs in zip(after.ref_logprobs or (), before.ref_logprobs or (), strict=True):
            assert np.array_equal(mine, theirs)
        plain = {"trajectories": (), "ref_logprobs": None}
        assert replace(after, **plain) == replace(before, **plain)  # type: ignore[arg-type]


def test_a_checkpoint_without_finished_groups_has_no_folder_for_them(tmp_path: Path) -> None:
    assert read_groups(tmp_path) == []
    assert not (tmp_path / FINISHED).exists()


def test_a_full_disk_is_named_so_that_the_run_can_wait_for_room(tmp_path: Path) -> None:
    (tmp_path / FINISHED).mkdir()
    (tmp_path / FINISHED / "prompt-000000012.npz").symlink_to("/dev/full")
    with pytest.raises(NoRoomError, match=r"no room on the disk for .*prompt-000000012\.npz"):
        write_group(tmp_path, finished(12, 3, with_reference=True))
