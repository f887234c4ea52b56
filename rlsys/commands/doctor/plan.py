"""The plan of a run, printed: placement, memory, listening sockets, and seconds per step."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rlsys.build.diagram import diagram, place
from rlsys.build.gpu_memory import UNCONFIRMED, gpu_finding, gpu_memory
from rlsys.build.memory import NAME, memory_finding, run_memory
from rlsys.build.placement import worker_demands
from rlsys.build.role_memory import RoleMemory
from rlsys.build.sockets import planned_sockets
from rlsys.build.step_time import estimate_step
from rlsys.commands.doctor.table import show, show_findings, show_rows, show_title
from rlsys.config.cluster_address import cluster_address
from rlsys.errors import ConfigError
from rlsys.preflight.prepared import Prepared
from rlsys.runtime.findings import Finding, Level
from rlsys.runtime.gpus import fullest_gpu
from rlsys.runtime.node_checks import GB
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
    """Print the predicted memory of every role; compare it with the machine, or with all nodes of a cluster."""
    try:
        if prepared.config.cluster.num_gpus > 0:
            return [_gpu_memory(prepared)]
        memory = run_memory(prepared)
    except ConfigError as error:
        return [Finding(NAME, Level.NOTE, str(error))]
    show_title("memory, MB (predicted; pages of files are not counted)")
    rows = _memory_rows(memory.roles, "together", lambda role: role.total)
    rows.append(("all", *[""] * (len(rows[0]) - 2), f"{memory.total / 1e6:,.0f}"))
    show_rows(rows)
    limits = [node.limits for node in nodes if node.limits is not None]
    if len(nodes) == 1 and limits:
        return [memory_finding(memory, limits[0])]
    free = sum(one.free_memory for one in limits) / GB
    found = f"about {memory.total / GB:.1f} GB on all nodes together, which have {free:.1f} GB free"
    return [Finding(NAME, Level.NOTE, found)]


def _gpu_memory(prepared: Prepared) -> Finding:
    """Print what one rank of each role needs on its GPU; compare it with this machine's GPUs."""
    is_here = cluster_address(prepared.config.cluster) is None
    memory, gpu = gpu_memory(prepared), fullest_gpu() if is_here else None
    show_title(f"memory of each GPU, MB ({UNCONFIRMED})")
    show_rows(_memory_rows(memory.roles, "each", lambda role: role.each))
    return gpu_finding(memory, gpu)


def _memory_rows(roles: Sequence[RoleMemory], last: str, size_of: Callable[[RoleMemory], int]) -> list[tuple[str, ...]]:
    """Return a row per role: its parts, and in the `last` column a sum."""
    kinds = list(dict.fromkeys(kind for role in roles for kind, size in role.parts.items() if size))
    rows: list[tuple[str, ...]] = [("", "processes", *kinds, last)]
    for role in roles:
        cells = [f"{size / 1e6:,.0f}" if (size := role.parts.get(kind)) else "" for kind in kinds]
        rows.append((role.name, str(role.count), *cells, f"{size_of(role) / 1e6:,.0f}"))
    return rows


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
