"""Steps that met NaN or infinity are written down, counted, and end the run when they come in a row."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import numpy as np

from rlsys.guards.nonfinite import NonFiniteGuard
from rlsys.run_folder.checkpoint import RunState
from rlsys.types import NonFiniteTrajectory, RolloutGroup, Trajectory
from tests.unit.records import group, reward, scored, summary, text_of

GROUPS = [
    scored(
        group(0, [summary(1), summary(1)]),
        [reward(1.0), reward(None, "not_finite", detail="reward 'x': returned nan")],
    )
]


async def arrays(_: RolloutGroup) -> list[Trajectory]:
    ids = np.array([1, 2, 3, 4], dtype=np.int32)
    return [Trajectory(ids, ids > 3, np.array([0, 0, 0, np.nan], dtype=np.float32), (), "stop", 0)] * 2


def test_trajectories_are_written_and_counted(tmp_path: Path) -> None:
    guard = NonFiniteGuard(tmp_path, 2, arrays, text_of, RunState(0, 0))
    counted = asyncio.run(guard.record(5, [NonFiniteTrajectory(0, 1, "reward")], GROUPS))
    assert counted == {"nonfinite/trajectories": 1.0, "nonfinite/steps": 1.0}
    row = json.loads((tmp_path / "nonfinite" / "step-000005.jsonl").read_text())
    assert row["what"] == "reward"
    assert row["details"] == {"exact_match": "reward 'x': returned nan"}
    assert row["token_ids"] == [1, 2, 3, 4]
    assert row["behavior_logprobs"] == ["0.0", "0.0", "0.0", "nan"]
    assert guard.trouble() is None


def test_steps_in_a_row_end_the_run_and_a_good_one_starts_the_count_again(tmp_path: Path) -> None:
    guard = NonFiniteGuard(tmp_path, 2, arrays, text_of, RunState(0, 0))
    for bad in (True, False, True):
        asyncio.run(guard.record(1, [NonFiniteTrajectory(0, 0, "gradient")] * bad, GROUPS))
        assert guard.trouble() is None
    assert asyncio.run(guard.record(4, [NonFiniteTrajectory(0, 0, "gradient")], GROUPS))["nonfinite/steps"] == 3.0
    why = guard.trouble() or ""
    assert why.startswith("2 steps in a row met NaN or infinity and were not applied (train.max_nonfinite_steps=2)")
    assert str(tmp_path / "nonfinite") in why


def test_a_resumed_run_goes_on_counting(tmp_path: Path) -> None:
    guard = NonFiniteGuard(tmp_path, 2, arrays, text_of, RunState(7, 0, nonfinite_in_a_row=1, nonfinite_total=4))
    assert asyncio.run(guard.record(8, [NonFiniteTrajectory(0, 0, "gradient")], GROUPS))["nonfinite/steps"] == 5.0
    assert "2 steps in a row" in (guard.trouble() or "")
