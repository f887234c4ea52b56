"""The checks of a machine on every node of a Ray cluster, each in a small task."""

from __future__ import annotations

import time
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from rlsys.runtime.findings import Finding, Level, report
from rlsys.runtime.limits import Limits
from rlsys.runtime.node_checks import node_findings

MAX_CLOCK_S = 1.0  # by how much a node's clock may be wrong before times of different nodes cannot be compared


@dataclass(frozen=True)
class Node:
    """One machine that workers may run on; a local Ray has only the driver's."""

    name: str
    num_cpus: float  # as Ray counts them
    num_gpus: float
    limits: Limits | None  # None: it did not answer
    findings: tuple[Finding, ...] = ()


def survey(deadline_s: float, chosen: Collection[str] | None = None) -> list[Node]:
    """Check the living nodes of the cluster that this process has joined, or those with the `chosen` ids.

    Nodes that do not answer within `deadline_s` have a failing finding.
    """
    nodes = [node for node in ray.nodes() if node["Alive"] and (chosen is None or node["NodeID"] in chosen)]
    task = ray.remote(_look)
    sent = time.time()
    places = [NodeAffinitySchedulingStrategy(node["NodeID"], soft=False) for node in nodes]
    calls = [task.options(num_cpus=0, max_retries=0, scheduling_strategy=place).remote() for place in places]
    done, _ = ray.wait(calls, num_returns=len(calls), timeout=deadline_s)
    received = time.time()
    return [
        _node(node, call if call in done else None, (sent, received), deadline_s)
        for node, call in zip(nodes, calls, strict=True)
    ]


def check_nodes(deadline_s: float, chosen: Collection[str]) -> None:
    """Log what is doubtful on the nodes with these ids. Raise ConfigError for what no run can start with."""
    nodes = survey(deadline_s, chosen)
    report([replace(found, name=f"node {node.name}: {found.name}") for node in nodes for found in node.findings])


def _look() -> tuple[Limits, list[Finding], float]:
    """Check the machine that this task runs on, and read its clock."""
    return Limits.here(), node_findings(starts_ray=False), time.time()


def _node(node: dict[str, Any], call: Any, asked: tuple[float, float], deadline_s: float) -> Node:
    name = f"{node['NodeManagerHostname']} ({node['NodeManagerAddress']})"
    resources = node["Resources"]
    sizes = (resources.get("CPU", 0.0), resources.get("GPU", 0.0))
    if call is None:
        remedy = "see whether its raylet lives and has room for one more process (ray status)"
        failed = Finding("answer", Level.FAIL, f"none within {deadline_s:g} s", remedy)
        return Node(name, *sizes, None, (failed,))
    try:
        limits, findings, clock = ray.get(call)
    except ray.exceptions.RayError as error:
        text = str(error).strip().splitlines()[-1]
        failed = Finding("answer", Level.FAIL, text, "install this version of rlsys on that node")
        return Node(name, *sizes, None, (failed,))
    return Node(name, *sizes, limits, (*findings, clock_finding(clock, *asked)))


def clock_finding(clock: float, sent: float, received: float) -> Finding:
    """Compare a node's time, taken between two moments of the driver, with the driver's."""
    wrong = max(sent - clock, clock - received, 0.0)
    if wrong > MAX_CLOCK_S:
        found = f"its clock differs from the driver's by at least {wrong:.1f} s"
        remedy = "synchronise both (chrony, ntpd): the timeline and the ages of files compare them"
        return Finding("clock", Level.WARN, found, remedy)
    return Finding("clock", Level.OK, "agrees with the driver's as far as can be seen")
