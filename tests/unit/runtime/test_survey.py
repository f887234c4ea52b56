"""The results of the checks on a cluster's nodes; tests/cluster asks a real Ray."""

from __future__ import annotations

import pytest
import ray

from rlsys.errors import ConfigError
from rlsys.runtime.findings import Finding, Level
from rlsys.runtime.limits import Limits
from rlsys.runtime.survey import Node, _node, check_nodes, clock_finding

RAY_S = {"NodeManagerHostname": "host", "NodeManagerAddress": "10.0.0.2", "Resources": {"CPU": 4.0}}
LIMITS = Limits(2, 4, 10**9, 10**9, 10**9)


def test_a_clock_is_compared_with_the_moments_around_the_call() -> None:
    assert clock_finding(105.0, 100.0, 110.0).level == Level.OK
    assert clock_finding(110.9, 100.0, 110.0).level == Level.OK
    late, early = clock_finding(115.0, 100.0, 110.0), clock_finding(90.0, 100.0, 110.0)
    assert (late.level, early.level) == (Level.WARN, Level.WARN)
    assert "at least 5.0 s" in late.found
    assert "at least 10.0 s" in early.found


def test_a_node_that_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    own = Finding("ports", Level.OK, "fine")
    monkeypatch.setattr(ray, "get", lambda _: (LIMITS, [own], 130.0))
    node = _node(RAY_S, "call", (100.0, 110.0), 60.0)
    assert (node.name, node.num_cpus, node.num_gpus, node.limits) == ("host (10.0.0.2)", 4, 0, LIMITS)
    assert node.findings == (own, clock_finding(130.0, 100.0, 110.0))


def test_a_node_that_does_not_answer() -> None:
    node = _node(RAY_S, None, (100.0, 110.0), 60.0)
    assert node.limits is None
    assert [(finding.level, finding.found) for finding in node.findings] == [(Level.FAIL, "none within 60 s")]


def test_a_node_that_lacks_rlsys(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(_: object) -> None:
        raise ray.exceptions.RaySystemError("it failed\nNo module named 'rlsys.runtime.survey'")

    monkeypatch.setattr(ray, "get", refuse)
    (finding,) = _node(RAY_S, "call", (100.0, 110.0), 60.0).findings
    assert finding.level == Level.FAIL
    assert finding.text == "No module named 'rlsys.runtime.survey': install this version of rlsys on that node"


def test_a_run_is_refused_on_a_node_that_fails_and_warned_of_one_that_may(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    few, none = Finding("open files", Level.WARN, "few", "ulimit"), Finding("ports", Level.FAIL, "none", "free some")

    def survey(deadline_s: float, chosen: set[str]) -> list[Node]:
        assert (deadline_s, chosen) == (60.0, {"a", "b"})
        return [Node("one", 1, 0, LIMITS, (few,)), Node("two", 1, 0, LIMITS, (none,))]

    monkeypatch.setattr("rlsys.runtime.survey.survey", survey)
    with pytest.raises(ConfigError, match=r"^node two: ports: none: free some$"):
        check_nodes(60.0, {"a", "b"})
    assert "node one: open files: few: ulimit" in caplog.text
