"""The learner group: W ranks called together; one failing rank fails the call."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlsys.batch import balance
from rlsys.learner.worker import LearnerSetup, LearnerWorker
from rlsys.runtime.calls import gather
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.types import Experience


class LearnerGroup:
    """Starts the ranks, divides each update's work among them, and speaks for them in broadcasts."""

    def __init__(self, cluster: Cluster, setup: LearnerSetup, demands: list[Demand]) -> None:
        self._cluster = cluster
        self._setup = setup
        self._workers = {
            demand.name: cluster.start(LearnerWorker, demand, rank, setup) for rank, demand in enumerate(demands)
        }
        self._lead = next(iter(self._workers.values()))
        self._update_info: Mapping[str, Any] = {}

    def start(self, deadline_s: float) -> None:
        """Build the engine on every rank."""
        host, port = self.weight_address()
        calls = {name: worker.start.remote(host, port) for name, worker in self._workers.items()}
        infos = gather(calls, what="starting the learner", deadline_s=deadline_s)
        self._update_info = next(iter(infos.values()))

    def update(self, experience: Experience) -> dict[str, float]:
        """Train on `experience`; returns the metrics, which are the same on every rank."""
        shares = balance([row.num_tokens for row in experience.rows], len(self._workers))
        arrays = [*experience.trajectories, *(experience.ref_logprobs or ())]
        calls = {}
        for (name, worker), share in zip(self._workers.items(), shares, strict=True):
            rows = [experience.rows[index] for index in share]
            picks = [(row.group, row.sample, row.advantage) for row in rows]
            calls[name] = worker.update.remote(
                picks, experience.totals, experience.policy_version, len(experience.trajectories), *arrays
            )
        results = gather(calls, what="policy update", deadline_s=self._setup.learner.deadline_s)
        return next(iter(results.values()))

    def save(self, folder: str) -> None:
        """Write a checkpoint; every rank writes its part."""
        self._all("save", folder, what="saving a checkpoint")

    def load(self, folder: str) -> None:
        """Restore a checkpoint on every rank."""
        self._all("load", folder, what=f"loading {folder}")

    def stop(self, deadline_s: float) -> None:
        """Leave the process group on every rank."""
        calls = {name: worker.stop.remote() for name, worker in self._workers.items()}
        gather(calls, what="stopping the learner", deadline_s=deadline_s)

    def weight_address(self) -> tuple[str, int]:
        """Rank 0's node address and a free port there."""
        return gather({"learner/0": self._lead.address.remote()}, what="learner address", deadline_s=300.0)["learner/0"]

    def weight_update_info(self, backend: str) -> Mapping[str, Any]:
        """What the next broadcast carries; with ipc, the handles themselves."""
        return self._all("export_weights", what="exporting weights") if backend == "ipc" else self._update_info

    def begin_open_weights(self, backend: str, host: str, port: int, world_size: int) -> dict[str, Any]:
        return {
            name: worker.open_weights.remote(backend, host, port, world_size) for name, worker in self._workers.items()
        }

    def begin_send_weights(self) -> dict[str, Any]:
        return {name: worker.send_weights.remote() for name, worker in self._workers.items()}

    def _all(self, method: str, *args: Any, what: str) -> Any:
        calls = {name: getattr(worker, method).remote(*args) for name, worker in self._workers.items()}
        return next(iter(gather(calls, what=what, deadline_s=self._setup.learner.deadline_s).values()))

    def kill(self) -> None:
        """End every rank's process now."""
        self._cluster.kill(self._workers.values())
