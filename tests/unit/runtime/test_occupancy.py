"""Shares of time with nothing to do, on a clock of the test's."""

from __future__ import annotations

import pytest

from rlsys.runtime.occupancy import Occupancy


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_by_hand() -> None:
    clock = Clock()
    measured = Occupancy(clock)
    measured.begin("learner/0")
    measured.begin("rollout/0")
    measured.begin("rollout/1")
    clock.now = 2.0
    measured.end("rollout/1")
    measured.begin("rollout/0")  # a second call at the same time
    clock.now = 3.0
    measured.end("rollout/0")
    clock.now = 4.0
    measured.end("learner/0")
    assert measured.take() == {"idle/learner": 0.0, "idle/rollout": pytest.approx(1 - (4 + 2) / 8)}
    clock.now = 6.0
    measured.end("rollout/0")  # busy until here
    clock.now = 8.0
    assert measured.take() == {"idle/learner": 1.0, "idle/rollout": pytest.approx(1 - 2 / 8)}


def test_a_worker_that_has_left_counts_no_more_and_another_may_have_its_name() -> None:
    clock = Clock()
    measured = Occupancy(clock)
    for worker in ("rollout/0", "rollout/1"):
        measured.begin(worker)
    clock.now = 1.0
    measured.forget("rollout/1")
    measured.end("rollout/1")
    clock.now = 2.0
    assert measured.take() == {"idle/rollout": 0.0}
    clock.now = 3.0
    measured.begin("rollout/1")
    clock.now = 4.0
    assert measured.take() == {"idle/rollout": pytest.approx(1 - (2 + 1) / 4)}


def test_nothing_is_said_of_no_time_at_all() -> None:
    measured = Occupancy(Clock())
    measured.begin("scoring/0")
    assert measured.take() == {}
