"""The learner group: the gang that trains the policy and speaks for it in broadcasts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from rlsys.gang.group import GangGroup
from rlsys.learner.worker import LearnerSetup, LearnerWorker
from rlsys.runtime.cluster import Cluster, Demand


class LearnerGroup(GangGroup):
    """What a broadcast and a reference refresh ask of the policy's gang."""

    METRICS = "policy"

    def __init__(self, cluster: Cluster, setup: LearnerSetup, demands: list[Demand]) -> None:
        super().__init__(cluster, LearnerWorker, setup.learner, setup, demands)
        self._update_info: Mapping[str, Any] = {}

    def weight_address(self) -> tuple[str, int]:
        """Rank 0's node address and a free port there."""
        return self.address()

    def weight_update_info(self, backend: str) -> Mapping[str, Any]:
        """What the next broadcast carries; with ipc, the handles themselves."""
        return self._all("export_weights", what="exporting weights") if backend == "ipc" else self._update_info

    def begin_open_weights(self, backend: str, host: str, port: int, world_size: int) -> dict[str, Any]:
        return {
            name: worker.open_weights.remote(backend, host, port, world_size) for name, worker in self._workers.items()
        }

    def begin_send_weights(self) -> dict[str, Any]:
        return {name: worker.send_weights.remote() for name, worker in self._workers.items()}

    def begin_read_weights(self) -> dict[str, Any]:
        """The whole policy, as a reference to what rank 0 returns first, and the other ranks' empty answers."""
        return {name: worker.read_weights.remote() for name, worker in self._workers.items()}

    def begin_probe(self, token_ids: np.ndarray) -> dict[str, Any]:
        """What every rank says of given tokens; each says the same."""
        return {name: worker.probe.remote(token_ids) for name, worker in self._workers.items()}

    def _on_started(self, info: Any) -> None:
        self._update_info = info
