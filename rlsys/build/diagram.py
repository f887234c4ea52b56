"""A text diagram of where a run's workers will be: nodes, and on each its workers with their CPUs and GPUs.

On a cluster Ray decides, and packs workers onto as few nodes as possible; the diagram does the same in the order of
roles, so it shows that there is room, and one way to use it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from rlsys.runtime.room import Demand
from rlsys.runtime.survey import Node


def place(demands: Iterable[Demand], nodes: Sequence[Node]) -> tuple[dict[str, list[Demand]], list[Demand]]:
    """Return the workers of each node by its name, and those for which there is no room."""
    free = {node.name: [node.num_cpus, node.num_gpus] for node in nodes}
    placed: dict[str, list[Demand]] = {node.name: [] for node in nodes}
    left_out = []
    for demand in demands:
        name = next(
            (n for n, (cpus, gpus) in free.items() if cpus >= demand.num_cpus and gpus >= demand.num_gpus), None
        )
        if name is None:
            left_out.append(demand)
            continue
        free[name][0] -= demand.num_cpus
        free[name][1] -= demand.num_gpus
        placed[name].append(demand)
    return placed, left_out


def diagram(placed: Mapping[str, Sequence[Demand]], notes: Mapping[str, str]) -> list[str]:
    """Return the lines of the diagram; `notes` are texts behind a node's name."""
    lines = []
    for node, demands in placed.items():
        lines.append(f"{node}  {notes.get(node, '')}".rstrip())
        for number, demand in enumerate(demands):
            corner = "└─" if number == len(demands) - 1 else "├─"
            threads = int(demand.env.get("OMP_NUM_THREADS", "1"))
            plural = "" if threads == 1 else "s"
            lines.append(f"{corner} {demand.name:<12} {_share(demand)}, {threads} thread{plural}")
        if not demands:
            lines.append("└─ no worker")
    return lines


def _share(demand: Demand) -> str:
    gpus = f", {demand.num_gpus:g} GPU" if demand.num_gpus else ""
    return f"{demand.num_cpus:g} CPU{gpus}"
