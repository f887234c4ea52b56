"""How often something may be started again."""

from __future__ import annotations

from rlsys.runtime.restarts import HOUR_S, Restarts


def test_restarts_of_each_name_are_counted_for_an_hour() -> None:
    now = [0.0]
    restarts = Restarts(2, clock=lambda: now[0])
    assert [restarts.take("a") for _ in range(3)] == [True, True, False]
    assert restarts.take("b")
    now[0] = HOUR_S
    assert not restarts.take("a")
    now[0] += 1.0
    assert [restarts.take("a") for _ in range(3)] == [True, True, False]


def test_none_may_be() -> None:
    assert not Restarts(0).take("a")
