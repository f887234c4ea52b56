"""The plan of a run, printed: placement, memory, listening sockets, and seconds per step."""

from __future__ import annotations

from collections.abc import Sequence

from rlsys.build.diagram import diagram, place
from rlsys.build.memory import GB, RunMemory, memory_finding, run_memory
from rlsys.build.placement import worker_demands
from rlsys.build.sockets import planned_sockets
from rlsys.build.step_time import estimate_step
from rlsys.commands.doctor.table import show, show_findings, show_rows, show_title
from rlsys.errors import ConfigError
from rlsys.preflight.prepared import Prepared
from rlsys.runtime.findings import Finding, Level
from rlsys.runtime.survey import Node


def show_plan(prepared: Prepared, nodes: Sequence[Node]) -> list[Finding]:
    """Print what the run will do on these nodes; return the findings, which are printed too."""
    config = prepared.config
    demands = worker_demands(config)
    findings = _placement(prepared, nodes) + _memory(prepared, nodes)
    show_findings("its room", findings)
    show_title("sockets that it will listen on (ports are chosen by the system)")
    sockets = planned_sockets(config, demands)
    show_rows([(one.kind, one.owner, one.address, one.use) for one in sockets], numbers=False)
    _step_time(prepared)
    return findings


def _placement(prepared: Prepared, nodes: Sequence[Node]) -> list[Finding]:
    """Print the diagram of workers and nodes."""
    if not nodes:
        return []
    demands = [demand for role in worker_demands(prepared.config).values() for demand in role]
    placed, left_out = place(demands, nodes)
    notes = {
        node.name: f"{node.limits.cores:g} cores, {node.limits.memory / GB:.1f} GB"
        for node in nodes
        if node.limits is not None
    }
    show_title("placement (Ray decides; one that fits)")
    for line in diagram(placed, notes):
        show(line)
    if left_out:
        names = ", ".join(demand.name for demand in left_out)
        remedy = "lower the numbers of workers or their num_cpus, or add nodes"
        return [Finding("placement", Level.FAIL, f"there is no room for {names}", remedy)]
    return [Finding("placement", Level.OK, f"{len(demands)} workers on {len(nodes)} nodes")]


def _memory(prepared: Prepared, nodes: Sequence[Node]) -> list[Finding]:
    """Print the predicted memory of every role; compare it with the machine, or with the largest node of a cluster."""
    try:
        memory = run_memory(prepared)
    except ConfigError as error:
        return [Finding("memory of the run", Level.NOTE, str(error))]
    show_title("memory, MB (predicted; pages of files are not counted)")
    show_rows(_memory_rows(memory))
    limits = [node.limits for node in nodes if node.limits is not None]
    if len(nodes) == 1 and limits:
        return [memory_finding(memory, limits[0])]
    found = f"about {memory.total / GB:.1f} GB on all nodes together, which have "
    return [
        Finding("memory of the run", Level.NOTE, f"{found}{sum(one.free_memory for one in limits) / GB:.1f} GB free")
    ]


def _memory_rows(memory: RunMemory) -> list[tuple[str, ...]]:
    kinds = list(dict.fromkeys(kind for role in memory.roles for kind, size in role.parts.items() if size))
    rows: list[tuple[str, ...]] = [("", "processes", *kinds, "together")]
    for role in memory.roles:
        cells = [f"{size / 1e6:,.0f}" if (size := role.parts.get(kind)) else "" for kind in kinds]
        rows.append((role.name, str(role.count), *cells, f"{role.total / 1e6:,.0f}"))
    empty = [""] * (len(kinds) + 1)
    rows.append(("training", *empty, f"{memory.training / 1e6:,.0f}"))
    return [*rows, ("start, with fork servers", *empty, f"{memory.start / 1e6:,.0f}")]


def _step_time(prepared: Prepared) -> None:
    show_title("seconds per step")
    if prepared.config.cluster.num_gpus > 0:
        show("not estimated: no GPU has been measured")
        return
    found = estimate_step(prepared)
    show(
        f"about {found.total_s:.2g} (rollout {found.rollout_s:.2g}, reference {found.reference_s:.2g}, update "
        f"{found.update_s:.2g})"
    )
    show(
        f"An estimate, from products of the model's sizes timed here for a moment ({found.flops_per_s / 1e9:.0f} "
        "GFLOP/s), for responses of the greatest length, without rewards. A step may well take twice or half as long. "
        "Once there is a run, rlsys simulate RUN starts from its measured times."
    )
