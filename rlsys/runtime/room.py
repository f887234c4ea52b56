"""Room for all workers of a run, reserved together: one Ray placement group with a bundle per worker.

Workers that join while the run goes on have a group each, since the bundles of a group are fixed.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray

from rlsys.errors import ConfigError, DeadlineError

POLL_S = 0.05


@dataclass(frozen=True)
class Demand:
    """The resources that one worker asks of Ray. `env` is set before its process starts."""

    name: str
    num_cpus: float
    num_gpus: float = 0.0
    env: Mapping[str, str] = field(default_factory=dict)


class Room:
    """The places of all workers, reserved at once: either every worker gets its place, or none does."""

    def __init__(self, demands: Sequence[Demand]) -> None:
        from ray.util.placement_group import placement_group

        self._demands = demands
        # Ray refuses a bundle of zeros; a worker without a demand may be placed anywhere (see `options`).
        needing = [demand for demand in demands if demand.num_cpus or demand.num_gpus]
        self._bundles = {demand.name: index for index, demand in enumerate(needing)}
        bundles = [{"CPU": demand.num_cpus, "GPU": demand.num_gpus} for demand in needing]
        # PACK: as few nodes as possible. Most of what workers exchange then stays on one machine: trajectories, and
        # weights in shared memory.
        self._group = placement_group(bundles, strategy="PACK") if bundles else None
        self._added: dict[str, Room] = {}  # of workers that came later

    def options(self, worker: str) -> dict[str, Any]:
        """Return the options that place a worker in its bundle; empty for a worker without a demand."""
        from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

        if worker in self._added:
            return self._added[worker].options(worker)
        if worker not in self._bundles:
            return {}
        index = self._bundles[worker]
        return {"scheduling_strategy": PlacementGroupSchedulingStrategy(self._group, index)}

    def nodes(self) -> set[str]:
        """Return the ids of the nodes that the room is on, once it is reserved."""
        return set(self._nodes_of_bundles().values())

    def on_node(self, node: str) -> list[str]:
        """Return the workers whose places are on a node, given by its id."""
        nodes = self._nodes_of_bundles()
        here = [worker for worker, index in self._bundles.items() if nodes.get(index) == node]
        return here + [worker for place in self._added.values() for worker in place.on_node(node)]

    def _nodes_of_bundles(self) -> dict[int, str]:
        if self._group is None:
            return {}
        found: dict[int, str] = ray.util.placement_group_table(self._group)["bundles_to_node_id"]
        return found

    async def wait(self, deadline_s: float) -> None:
        """Wait until the room is reserved.

        Raises:
            ConfigError: The cluster could not hold the workers even if it were empty.
            DeadlineError: Other jobs use the resources and did not release them in time.
        """
        end = time.monotonic() + deadline_s
        while self._group is not None:
            table = ray.util.placement_group_table(self._group)
            if table["state"] == "CREATED":
                return
            if table["stats"].get("scheduling_state") == "INFEASIBLE":
                raise ConfigError(
                    f"the cluster has no room for the run's workers. Asked: {self._asked()}. Have: {_nodes()}. Lower "
                    "the numbers of workers or their num_cpus, or add nodes"
                )
            if time.monotonic() >= end:
                raise DeadlineError(
                    f"no room for the run's workers within {deadline_s:g} s. Asked: {self._asked()}. "
                    f"{describe_free_resources()}"
                )
            await asyncio.sleep(POLL_S)

    async def add(self, demand: Demand, deadline_s: float) -> None:
        """Reserve a place for one more worker, unless it has one; raises what `wait` does, and takes no place then."""
        if demand.name in self._bundles or demand.name in self._added:
            return
        place = Room([demand])
        try:
            await place.wait(deadline_s)
        except BaseException:
            place._remove()
            raise
        self._added[demand.name] = place

    async def move(self, worker: str, deadline_s: float) -> None:
        """Reserve another place for a worker, whose next process starts there; raises what `wait` does."""
        place = Room([next(demand for demand in self._demands if demand.name == worker)])
        try:
            await place.wait(deadline_s)
        except BaseException:
            place._remove()
            raise
        # Not its present place: the process there works until the next one has started. It ends with its node.
        self._bundles.pop(worker, None)
        self._added[worker] = place

    def forget(self, worker: str) -> None:
        """Count on a worker's place no more, since its node ends: the next process of its name gets another."""
        self._bundles.pop(worker, None)
        self.release(worker)

    def release(self, worker: str) -> None:
        """Give back the place of a worker that was added; those reserved together are kept together."""
        if worker in self._added:
            self._added.pop(worker)._remove()

    def _remove(self) -> None:
        if self._group is not None:
            ray.util.remove_placement_group(self._group)

    def _asked(self) -> str:
        return "; ".join(f"{d.name}: {d.num_cpus:g} CPU, {d.num_gpus:g} GPU" for d in self._demands)


def describe_free_resources() -> str:
    """Describe the cluster's free resources."""
    resources = ray.available_resources()
    return (
        f"Free in the cluster now: {resources.get('CPU', 0.0):g} CPU, {resources.get('GPU', 0.0):g} GPU (workers that "
        "wait for room start when others give theirs back)"
    )


def _nodes() -> str:
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    described = (
        f"node {i}: {node.get('CPU', 0.0):g} CPU, {node.get('GPU', 0.0):g} GPU" for i, node in enumerate(nodes)
    )
    return "; ".join(described)
