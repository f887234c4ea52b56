"""A run hears of the end of Ray's own processes, while its workers may still answer."""

from __future__ import annotations

import asyncio

import psutil
import pytest
import ray

from rlsys.config.schema import ClusterConfig
from rlsys.errors import WorkerDiedError
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.head_watch import watch_ray
from tests.integration.runs import wait


@pytest.mark.parametrize(("process", "is_local"), [("gcs_server", True), ("raylet", True), ("gcs_server", False)])
def test_a_run_hears_that_ray_is_gone(process: str, is_local: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cluster that was joined has its processes elsewhere."""
    cluster = Cluster(ClusterConfig())
    cluster.connect([])
    try:
        node = ray._private.worker._global_node
        if not is_local:
            monkeypatch.setattr(node, "dead_processes", list)

        async def watch() -> None:
            watching = asyncio.ensure_future(watch_ray(every_s=0.2, deadline_s=2.0))
            await asyncio.sleep(1.0)
            assert not watching.done()
            for found in psutil.Process().children():
                if found.name() == process:
                    found.kill()
            await asyncio.wait_for(watching, timeout=60)

        said = f"processes of Ray have ended: {process}" if is_local else "Ray's head has not answered within 2 s"
        with pytest.raises(WorkerDiedError, match=said):
            wait(watch())
    finally:
        cluster.close()
