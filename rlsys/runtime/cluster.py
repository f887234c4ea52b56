"""Connecting to Ray, and starting workers in the room reserved for them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import shutil
import signal
import threading
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import ray

from rlsys.config.schema import ClusterConfig
from rlsys.errors import ConfigError
from rlsys.runtime.background import cancel
from rlsys.runtime.calls import Calls
from rlsys.runtime.logs import LOG_DIR, WORKER
from rlsys.runtime.processes import Guardian
from rlsys.runtime.proxies import exempt_loopback
from rlsys.runtime.room import Demand, Room

WAIT_ON_S = 1.0  # between two messages to the guardian, well below its grace


class Cluster:
    """A connection to Ray: a local one of this run's own, or a running cluster."""

    def __init__(self, config: ClusterConfig, log_dir: Path | None = None) -> None:
        """Prepare for `connect`; workers write their log files to `log_dir`."""
        self._config = config
        self._log_dir = log_dir
        self.room: Room
        self.calls = Calls()
        self._guardian: Guardian | None = None
        self._session_dir: str | None = None
        # Inside `ray job submit` the job's own cluster is the one to use.
        self.address = config.address or os.environ.get("RAY_ADDRESS")

    def connect(self, demands: list[Demand]) -> None:
        """Start or join Ray, and ask for room for all workers; `room.wait` waits for it.

        Raises:
            ConfigError: no cluster answers at the address.
        """
        # Workers without GPUs keep the CUDA_VISIBLE_DEVICES of their `Demand.env`; with 1 Ray would empty it.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        exempt_loopback()  # before Ray, whose processes inherit it; trackers may be services of this machine too
        with _signal_handler_kept(signal.SIGTERM):
            if self.address is None:
                self._start_local(demands)
            else:
                self._join(self.address)
        self.room = Room(demands)

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
        # Before Ray, so that Ray's processes inherit the tag by which the guardian finds them.
        self._guardian = Guardian()
        context = ray.init(
            address="local",
            # A local cluster has as many logical CPUs as the roles ask for: roles share the physical ones.
            num_cpus=math.ceil(sum(demand.num_cpus for demand in demands)) + 1,
            num_gpus=self._config.num_gpus or None,
            include_dashboard=False,
            log_to_driver=self._config.log_to_driver,
            logging_level="error",
            object_store_memory=_object_store_bytes(),
        )
        self._session_dir = context.address_info["session_dir"]

    def start(self, worker: type, demand: Demand, *args: Any, **options: Any) -> Any:
        """Start `worker(*args)` in a Ray process of its own, in the room reserved for it; returns the handle."""
        return (
            ray.remote(worker)
            .options(
                num_cpus=demand.num_cpus,
                num_gpus=demand.num_gpus,
                max_restarts=0,
                runtime_env={"env_vars": self._env(demand)},
                **self.room.options(demand.name),
                **options,
            )
            .remote(*args)
        )

    def _env(self, demand: Demand) -> dict[str, str]:
        logs = {} if self._log_dir is None else {LOG_DIR: str(self._log_dir), WORKER: demand.name}
        return {**demand.env, **logs}

    @contextlib.asynccontextmanager
    async def unhurried(self) -> AsyncIterator[None]:
        """Keep the guardian from killing this process in the block, as it otherwise does soon after a signal."""

        async def ask() -> None:
            while self._guardian is not None:
                self._guardian.wait_on()
                await asyncio.sleep(WAIT_ON_S)

        asking = asyncio.ensure_future(ask())
        try:
            yield
        finally:
            await cancel([asking])

    def close(self) -> None:
        """Leave Ray; a local one is stopped with every process it started, and its session files removed."""
        # Ray first, so that it can stop in order. The guardian ends what is left, and then nobody uses the files.
        ray.shutdown()
        if self._guardian is not None:
            self._guardian.close()
            self._guardian = None
        if self._session_dir is not None:
            shutil.rmtree(self._session_dir, ignore_errors=True)
            self._session_dir = None


@contextlib.contextmanager
def _signal_handler_kept(number: signal.Signals) -> Iterator[None]:
    """Restore the handler of one signal after the block.

    `ray.init` replaces the handler of SIGTERM, in Python and in C++, by one that ends the process at once.
    """
    handler = signal.getsignal(number)
    yield
    if handler is not None and threading.current_thread() is threading.main_thread():
        signal.signal(number, handler)


def _object_store_bytes() -> int:
    """Return half of /dev/shm's free space, between 128 MiB and 4 GiB: trajectories are small."""
    shm = Path("/dev/shm")
    free = shutil.disk_usage(shm).free if shm.exists() else 2**30
    return int(min(max(free * 0.5, 128 * 2**20), 4 * 2**30))
