"""Connecting to Ray, checking that the demands fit, and starting workers."""

from __future__ import annotations

import contextlib
import math
import os
import shutil
import signal
import threading
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ray

from rlsys.config.schema import ClusterConfig
from rlsys.errors import ConfigError
from rlsys.runtime.calls import Calls
from rlsys.runtime.processes import Guardian


@dataclass(frozen=True)
class Demand:
    """What one worker asks of Ray. `env` is set before its process starts."""

    name: str
    num_cpus: float
    num_gpus: float = 0.0
    env: Mapping[str, str] = field(default_factory=dict)


class Cluster:
    """A connection to Ray: a local one of this run's own, or a running cluster."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config
        self.calls = Calls()
        self._guardian: Guardian | None = None
        self._session_dir: str | None = None
        # Inside `ray job submit` the job's own cluster is the one to use.
        self.address = config.address or os.environ.get("RAY_ADDRESS")

    def connect(self, demands: list[Demand]) -> None:
        """Start or join Ray. Raises ConfigError when the demands cannot fit on the cluster's nodes."""
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        with _signal_handler_kept(signal.SIGTERM):
            if self.address is None:
                self._start_local(demands)
            else:
                self._join(self.address)
        _check_fit(demands)

    def room(self) -> str:
        """What is free now, for the message of a start that did not come about."""
        free = ray.available_resources()
        return (
            f"Free in the cluster now: {free.get('CPU', 0.0):g} CPU, {free.get('GPU', 0.0):g} GPU (workers that wait "
            "for room start when others give theirs back)"
        )

    def _join(self, address: str) -> None:
        try:
            ray.init(address=address, log_to_driver=self._config.log_to_driver, logging_level="error")
        except (ConnectionError, ValueError, RuntimeError) as error:
            source = "cluster.address" if self._config.address else "the environment variable RAY_ADDRESS"
            raise ConfigError(
                f"no Ray cluster answers at '{address}' (from {source}): {str(error).strip().splitlines()[0]}. Start "
                "one with 'ray start --head', correct the address, or set cluster.address=null for a local Ray"
            ) from error

    def _start_local(self, demands: list[Demand]) -> None:
        self._guardian = Guardian()
        context = ray.init(
            address="local",
            # A cluster of one's own has as many logical CPUs as asked for: roles take turns on the real ones.
            num_cpus=math.ceil(sum(demand.num_cpus for demand in demands)) + 1,
            num_gpus=self._config.num_gpus or None,
            include_dashboard=False,
            log_to_driver=self._config.log_to_driver,
            logging_level="error",
            object_store_memory=_object_store_bytes(),
        )
        self._session_dir = context.address_info["session_dir"]

    def start(self, worker: type, demand: Demand, *args: Any, **options: Any) -> Any:
        """Start `worker(*args)` in a Ray process of its own; returns the handle."""
        return (
            ray.remote(worker)
            .options(
                num_cpus=demand.num_cpus,
                num_gpus=demand.num_gpus,
                max_restarts=0,
                runtime_env={"env_vars": dict(demand.env)},
                **options,
            )
            .remote(*args)
        )

    def kill(self, workers: Iterable[Any]) -> None:
        """End the workers' processes now, without waiting for what they do."""
        for worker in workers:
            ray.kill(worker)

    def close(self) -> None:
        """Leave Ray; a local one is stopped with every process it started, and its session files removed."""
        ray.shutdown()
        if self._guardian is not None:
            self._guardian.close()
            self._guardian = None
        if self._session_dir is not None:
            shutil.rmtree(self._session_dir, ignore_errors=True)
            self._session_dir = None


@contextlib.contextmanager
def _signal_handler_kept(number: signal.Signals) -> Iterator[None]:
    """Ray puts handlers of its own in place, in Python and below, which end the process on the spot: put ours back."""
    handler = signal.getsignal(number)
    yield
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def _object_store_bytes() -> int:
    """Half of /dev/shm's free space, between 128 MiB and 4 GiB: trajectories are small."""
    shm = Path("/dev/shm")
    free = shutil.disk_usage(shm).free if shm.exists() else 2**30
    return int(min(max(free * 0.5, 128 * 2**20), 4 * 2**30))


def _check_fit(demands: list[Demand]) -> None:
    """Place the largest demands first on the node with most room; what does not fit is an error with both sides."""
    nodes = [dict(node["Resources"]) for node in ray.nodes() if node["Alive"]]
    before = [{key: node.get(key, 0.0) for key in ("CPU", "GPU")} for node in nodes]
    for demand in sorted(demands, key=lambda d: (-d.num_gpus, -d.num_cpus)):
        fitting = [n for n in nodes if n.get("CPU", 0) >= demand.num_cpus and n.get("GPU", 0) >= demand.num_gpus]
        if not fitting:
            asked = "; ".join(f"{d.name}: {d.num_cpus:g} CPU, {d.num_gpus:g} GPU" for d in demands)
            have = "; ".join(f"node {i}: {n['CPU']:g} CPU, {n['GPU']:g} GPU" for i, n in enumerate(before))
            raise ConfigError(
                f"the cluster has no room for {demand.name}. Asked: {asked}. Have: {have}. Lower the numbers of "
                "workers or their num_cpus, or add nodes"
            )
        best = max(fitting, key=lambda n: (n.get("GPU", 0), n.get("CPU", 0)))
        best["CPU"] = best.get("CPU", 0) - demand.num_cpus
        best["GPU"] = best.get("GPU", 0) - demand.num_gpus
