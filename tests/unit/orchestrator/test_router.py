"""Whole groups go to the engine with the least load for its size."""

from __future__ import annotations

import pytest

from rlsys.errors import ScheduleError
from rlsys.orchestrator.router import Router


def test_the_least_loaded_engine_for_its_cap_and_the_lowest_among_equals() -> None:
    router = Router([4, 8, 4])
    assert [router.route(2) for _ in range(5)] == [0, 1, 2, 1, 0]  # loads over caps: 0, 0, 0; 1/2, 1/4, 1/2
    assert router.load == {0: 4, 1: 4, 2: 2}


def test_no_room_is_none_until_trajectories_finish() -> None:
    router = Router([4, 4])
    assert [router.route(3), router.route(3), router.route(3)] == [0, 1, None]
    router.release(1)
    assert router.route(3) is None
    router.release(1)
    assert router.route(3) == 1


def test_a_group_larger_than_the_cap_gets_an_idle_engine() -> None:
    router = Router([2])
    assert router.route(8) == 0
    assert router.route(1) is None
    router.release(0, 8)
    assert router.route(8) == 0


def test_an_engine_out_of_service_gets_nothing_until_it_is_back() -> None:
    router = Router([4, 4])
    router.route(4)
    assert router.remove(0)
    assert not router.remove(0)
    assert [router.route(2), router.route(2), router.route(2)] == [1, 1, None]
    router.add(0)
    assert router.load == {0: 0, 1: 4}
    assert router.route(2) == 0


def test_what_cannot_be_is_an_error() -> None:
    router = Router([4, 4])
    router.route(2)
    with pytest.raises(ScheduleError, match="engine 0 cannot finish 3 trajectories: 2 run there"):
        router.release(0, 3)
    with pytest.raises(ScheduleError, match="engine 1 cannot be added: it is in service"):
        router.add(1)
    with pytest.raises(ScheduleError, match="engine 2 cannot be added: it is none of the 2"):
        router.add(2)
    with pytest.raises(ValueError, match="caps="):
        Router([])
    with pytest.raises(ValueError, match="caps="):
        Router([4, 0])
