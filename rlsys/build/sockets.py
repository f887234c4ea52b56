"""The sockets that a run will listen on: a plan from its configuration, before anything is started.

`tests/integration/test_sockets.py` compares it with what the processes of a real run listen on.
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rlsys.build.environment import worker_imports
from rlsys.config.cluster_address import cluster_address
from rlsys.config.schema import Config
from rlsys.runtime.node_checks import ray_folder
from rlsys.runtime.room import Demand
from rlsys.weights.backend import weight_backend

# Addresses; a port is one that the system chooses. On a cluster Ray listens on every one.
EVERY, NODE, LOOPBACK = "every address of the machine", "the node's address", "127.0.0.1"


@dataclass(frozen=True)
class Socket:
    """Sockets of one kind.

    Attributes:
        owner: the processes that listen.
        kind: `tcp` or `unix`.
        address: one of the constants above; of a unix socket its file.
        use: what they are for.
    """

    owner: str
    kind: str
    address: str
    use: str


def planned_sockets(config: Config, demands: Mapping[str, Sequence[Demand]]) -> list[Socket]:
    """Return the sockets of a run with these workers."""
    is_local = cluster_address(config.cluster) is None
    node = LOOPBACK if is_local else NODE
    found = _of_local_ray() if is_local else []
    owner, use = f"driver and {sum(map(len, demands.values()))} workers", "calls between them, with the token of Ray"
    found.append(Socket(owner, "tcp", LOOPBACK if is_local else EVERY, use))
    if worker_imports(config):
        file = f"{tempfile.gettempdir()}/rlsys-fork-*/socket"
        found.append(Socket("fork servers", "unix", file, "making workers, also those that replace others"))
    for role in ("learner", "critic"):
        if demands[role]:
            found.append(Socket(f"{role} ranks", "tcp", node, "their meeting at rank 0, and gradients"))
    if weight_backend(config) != "ipc":
        use = f"their meeting at the learner, and new weights by {weight_backend(config)}"
        found.append(Socket("learner/0 and engines", "tcp", node, use))
    found.append(Socket("engines", "tcp", LOOPBACK, "process groups inside of vLLM"))
    return found


def _of_local_ray() -> list[Socket]:
    session = f"{ray_folder()[0]}/session_*/sockets"
    return [
        Socket("gcs_server, raylet", "tcp", LOOPBACK, "calls inside of Ray, with its token"),
        Socket("Ray's agents", "tcp", LOOPBACK, "calls inside of Ray, and metrics"),
        Socket("raylet", "unix", f"{session}/raylet", "workers of this machine"),
        Socket("raylet", "unix", f"{session}/plasma_store", "objects of this machine"),
    ]
