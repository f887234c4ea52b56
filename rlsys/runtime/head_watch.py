"""A watch over Ray: a run without its head still computes, and is ended by Ray without a word after a minute."""

from __future__ import annotations

import asyncio
from typing import Any

import ray

from rlsys.errors import WorkerDiedError

EVERY_S = 5.0
# A head that is started again by then is found again. Ray ends the driver and every worker after 60 s without one
# (RAY_gcs_rpc_server_reconnect_timeout_s), and the run's last checkpoint takes time too.
DEADLINE_S = 25.0


async def watch_ray(every_s: float = EVERY_S, deadline_s: float = DEADLINE_S) -> None:
    """Look after the head of the cluster, for as long as the run lasts.

    Raises:
        WorkerDiedError: a process of a local Ray has ended, or the head has not answered within `deadline_s`.
    """
    worker, node = ray._private.worker.global_worker, ray._private.worker._global_node
    while True:
        _check_processes(node)
        try:
            await worker.gcs_client.async_internal_kv_exists(b"rlsys", None, timeout=deadline_s)
        except ray.exceptions.RpcError as error:
            _check_processes(node)  # it may have ended meanwhile, which says more
            raise WorkerDiedError(f"Ray's head has not answered within {deadline_s:g} s: {error}", "Ray") from error
        await asyncio.sleep(every_s)


def _check_processes(node: Any) -> None:
    """Raise WorkerDiedError if a process of a local Ray has ended; a cluster that was joined has none here."""
    gone = sorted({name for name, _ in node.dead_processes()})
    if gone:
        raise WorkerDiedError(f"processes of Ray have ended: {', '.join(gone)}", "Ray")
