"""The checks on the nodes of a real Ray with two of them."""

from __future__ import annotations

from rlsys.runtime.findings import Level
from rlsys.runtime.survey import clock_finding


def test_a_clock_is_compared_with_the_moments_around_the_call() -> None:
    assert clock_finding(105.0, 100.0, 110.0).level == Level.OK
    assert clock_finding(110.9, 100.0, 110.0).level == Level.OK
    late, early = clock_finding(115.0, 100.0, 110.0), clock_finding(90.0, 100.0, 110.0)
    assert (late.level, early.level) == (Level.WARN, Level.WARN)
    assert "at least 5.0 s" in late.found
    assert "at least 10.0 s" in early.found
