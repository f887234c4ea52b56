"""Rows and arrays of one rank are joined in the right order."""

from __future__ import annotations

import numpy as np
import pytest

from rlsys.learner.rank import mean_metrics
from rlsys.learner.rank_batch import RankBatch, items_of
from rlsys.types import Coefficients, ExperienceRow, Trajectory, ValueEstimate


def trajectory(first: int) -> Trajectory:
    ids = np.array([first, first + 1], dtype=np.int32)
    return Trajectory(ids, np.array([False, True]), np.zeros(2, np.float32), (), "stop", 0)


@pytest.mark.parametrize("has_reference", [False, True])
@pytest.mark.parametrize("has_estimates", [False, True])
def test_every_row_gets_its_own_arrays(has_reference: bool, has_estimates: bool) -> None:
    """Two groups whose trajectories are spread over two chunks; this rank has a row of each."""
    chunks = [[trajectory(10)], [trajectory(20), trajectory(30)]]
    references = [[np.full(2, 1.0), np.full(2, 2.0)], [np.full(2, 3.0)]]
    estimates = [[ValueEstimate(*[np.full(2, v)] * 3) for v in group] for group in ([4.0, 5.0], [6.0])]
    rows = ExperienceRow(0, 0, 1, 0.5, 1.0, 2, 1), ExperienceRow(1, 1, 0, -0.5, 1.0, 2, 1)
    indices = [[(0, 0), (1, 1)], [(1, 0)]]
    minibatches = ((rows[0],), (rows[1],))
    batch = RankBatch(minibatches, (1, 1), Coefficients(0.0, 0.0), 0, indices, has_reference, has_estimates)
    arrays = [*chunks, *(references if has_reference else []), *(estimates if has_estimates else [])]
    (first,), (second,) = items_of(batch, arrays)
    assert [item.trajectory.token_ids[0] for item in (first, second)] == [30, 20]
    assert [item.row for item in (first, second)] == list(rows)
    found = [None if item.ref_logprobs is None else item.ref_logprobs[0] for item in (first, second)]
    assert found == ([2.0, 3.0] if has_reference else [None, None])
    values = [None if item.estimate is None else item.estimate.values[0] for item in (first, second)]
    assert values == ([5.0, 6.0] if has_estimates else [None, None])


def test_metrics_of_minibatches_by_hand() -> None:
    rows = [{"loss": 1.0, "ratio/max": 3.0, "policy/lr": 0.1}, {"loss": 5.0, "ratio/max": 2.0, "policy/lr": 0.2}]
    # (1 * 30 + 5 * 10) / 40 = 2; the largest maximum; the last learning rate
    assert mean_metrics(rows, [30, 10]) == {"loss": 2.0, "ratio/max": 3.0, "policy/lr": 0.2}
