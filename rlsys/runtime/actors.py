"""Where the process of a worker is, as Ray knows it."""

from __future__ import annotations

from typing import Any

import ray


def process_of(worker: Any) -> tuple[str, int] | None:
    """Return the id of the node that a worker's process runs on and its process id; None before it has started."""
    found = ray._private.state.actors(worker._actor_id.hex())
    return (found["Address"]["NodeID"], found["Pid"]) if found.get("Pid") else None


def own_node() -> str:
    """Return the id of the node that this process runs on."""
    node: str = ray.get_runtime_context().get_node_id()
    return node
