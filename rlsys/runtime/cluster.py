"""Connecting to Ray, and starting workers in the room reserved for them."""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import secrets
import shutil
import signal
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import ray
from ray._raylet import AuthenticationTokenLoader  # type: ignore[attr-defined]

from rlsys.config.cluster_address import cluster_address
from rlsys.config.schema import ClusterConfig
from rlsys.errors import ConfigError
from rlsys.runtime.background import cancel
from rlsys.runtime.calls import Calls
from rlsys.runtime.head_watch import watch_ray
from rlsys.runtime.lean_ray import only_what_a_run_uses
from rlsys.runtime.logs import LOG_DIR, SHOW_OUTPUT, WORKER
from rlsys.runtime.node_checks import MIN_SHM, check_temp_dir, ray_folder
from rlsys.runtime.preimport import Preimport
from rlsys.runtime.processes import Guardian
from rlsys.runtime.proxies import exempt_loopback
from rlsys.runtime.restarts import Restarts
from rlsys.runtime.room import Demand, Room
from rlsys.runtime.survey import check_nodes

ASK_S = 10.0  # for an answer of Ray's head
WAIT_ON_S = 1.0  # between two messages to the guardian, well below its grace
# Environment of a worker: the driver's folders, whose modules come after the libraries (`rlsys/__init__.py`).
CODE_FOLDERS = "RLSYS_CODE_FOLDERS"
REGISTERED_S = 240  # until a local Ray takes a worker for lost that has never answered
AUTHENTICATION = ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")


class Cluster:
    """A connection to Ray: a local one of this run's own, or a running cluster."""

    def __init__(self, config: ClusterConfig, log_dir: Path | None = None, preimport: Preimport | None = None) -> None:
        """Prepare for `connect`; workers write their log files to `log_dir`, and a local Ray forks them if it can."""
        self._config = config
        self._preimport = preimport
        self._log_dir = log_dir
        self.room: Room
        self.calls = Calls(log_dir)
        self.restarts = Restarts(config.max_restarts)
        self.startup_deadline_s = config.startup_deadline_s
        self.workers = self.calls.workers  # handles by the workers' names, as `rollout/0`
        self._guardian: Guardian | None = None
        self._environment = contextlib.ExitStack()  # what the environment was before a local Ray

    def connect(self, demands: list[Demand]) -> None:
        """Start or join Ray, and ask for room for all workers; `room.wait` waits for it.

        Raises:
            ConfigError: no cluster answers at the address, or no local one can start.
        """
        joined = cluster_address(self._config)
        # Workers without GPUs keep the CUDA_VISIBLE_DEVICES of their `Demand.env`; with 1 Ray would empty it.
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        exempt_loopback()  # before Ray, whose processes inherit it; trackers may be services of this machine too
        with _signal_handler_kept(signal.SIGTERM), _blocked(signal.SIGHUP):
            if joined is None:
                self._start_local(demands)
            else:
                self._join(*joined)
        self.room = Room(demands)

    def _join(self, address: str, source: str) -> None:
        try:
            ray.init(address=address, log_to_driver=self._config.log_to_driver, logging_level="error")
        except ray.exceptions.AuthenticationError as error:
            raise ConfigError(
                f"the Ray cluster at '{address}' (from {source}) does not take this process's token: put the token "
                "that its head was started with into ~/.ray/auth_token or RAY_AUTH_TOKEN_PATH, and set "
                "RAY_AUTH_MODE=token"
            ) from error
        except (ConnectionError, ValueError, RuntimeError) as error:
            raise ConfigError(
                f"no Ray cluster answers at '{address}' (from {source}): {str(error).strip().splitlines()[0]}. Start "
                "one with 'ray start --head', correct the address, or start a local Ray with cluster=local"
            ) from error

    def _start_local(self, demands: list[Demand]) -> None:
        check_temp_dir()
        # Before Ray, so that Ray's processes inherit the tag by which the guardian finds them.
        # Fork servers outlive this Ray: the next one of a run that starts again forks from them.
        servers = self._preimport
        self._guardian = Guardian(
            ray_folder()[0],
            None if servers is None else servers.tag,
            () if servers is None else servers.pids,
        )
        self._environment.enter_context(_own_token())
        with only_what_a_run_uses(with_logs=self._config.log_to_driver):
            ray.init(
                address="local",
                # A local cluster has as many logical CPUs as the roles ask for: roles share the physical ones.
                num_cpus=math.ceil(sum(demand.num_cpus for demand in demands)) + 1,
                num_gpus=self._config.num_gpus or None,
                include_dashboard=False,
                log_to_driver=self._config.log_to_driver,
                logging_level="error",
                object_store_memory=_object_store_bytes(),
                _system_config={
                    # Every worker of ours has an environment of its own, so none could use one that Ray starts ahead.
                    "prestart_worker_first_driver": False,
                    # A worker that is forked from what still imports (`fork_server.PATIENCE_S`) comes later than Ray's
                    # minute allows.
                    "worker_register_timeout_seconds": REGISTERED_S,
                    # No record of every call for a dashboard that is not there: the head's memory grew by 58 kB a step
                    # (benchmarks.soak), up to Ray's limit of 100,000 records.
                    "task_events_report_interval_ms": 0,
                },
            )

    def start(self, worker: type, demand: Demand, *args: Any, **options: Any) -> Any:
        """Start `worker(*args)` in a Ray process of its own, in the room reserved for it; returns the handle."""
        self.workers[demand.name] = (
            ray.remote(worker)
            .options(
                num_cpus=demand.num_cpus,
                num_gpus=demand.num_gpus,
                max_restarts=0,
                runtime_env={"env_vars": self._env(demand), **self._fork(demand)},
                **self.room.options(demand.name),
                **options,
            )
            .remote(*args)
        )
        return self.workers[demand.name]

    def kill(self, worker: Any) -> None:
        """End a worker's process, also one that hangs or is stopped; its open calls fail at once."""
        ray.kill(worker)

    def release(self, worker: str) -> None:
        """Forget a worker, by its name, whose process has ended, and give back the room that was added for it."""
        self.workers.pop(worker, None)
        self.calls.occupancy.forget(worker)
        self.room.release(worker)

    def has_started(self) -> None:
        """Note that all workers have been started, and Ray's own processes with them."""
        if self._guardian is not None:
            self._guardian.look()

    async def check_nodes(self) -> None:
        """Check the nodes of a joined cluster that the room is on, as the driver has checked its own machine."""
        if self._guardian is None:
            await asyncio.to_thread(check_nodes, self.startup_deadline_s, self.room.nodes())

    async def watch(self) -> None:
        """Look after Ray itself, for as long as the run lasts. Raise WorkerDiedError once it is gone."""
        await watch_ray()

    async def ending_nodes(self) -> dict[str, float] | None:
        """Return the nodes that have announced their end, by id: seconds until then, infinite where it is not known.

        None when Ray's head does not answer, which `watch` reports. Autoscalers and spot markets announce an end by
        Ray's state "draining". Ray starts nothing new on such a node.
        """
        client = ray._private.worker.global_worker.gcs_client
        try:
            ends_ms = await asyncio.to_thread(client.get_draining_nodes, timeout=ASK_S)
        except ray.exceptions.RpcError:
            return None
        return {node: end_ms / 1000 - time.time() if end_ms else math.inf for node, end_ms in ends_ms.items()}

    def _fork(self, demand: Demand) -> dict[str, str]:
        if self._preimport is None or self._guardian is None:
            return {}
        return self._preimport.options(demand.name.partition("/")[0])

    def _env(self, demand: Demand) -> dict[str, str]:
        env = {**demand.env, CODE_FOLDERS: os.pathsep.join(_code_folders())}
        # Ray leaves the variable alone for a worker without a share of a GPU: it would see those of all others.
        env |= {} if demand.num_gpus else {"CUDA_VISIBLE_DEVICES": ""}
        if self._log_dir is None:
            return env
        shown = {SHOW_OUTPUT: "1"} if self._config.log_to_driver else {}
        return {**env, LOG_DIR: str(self._log_dir), WORKER: demand.name, **shown}

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
        # Ray first, so that it can stop in order. The guardian ends what is left, and removes the files.
        with self._environment:
            ray.shutdown()
            if self._guardian is not None:
                self._guardian.close()
                self._guardian = None


@contextlib.contextmanager
def _signal_handler_kept(number: signal.Signals) -> Iterator[None]:
    """Restore the handler of one signal after the block.

    `ray.init` replaces the handler of SIGTERM, in Python and in C++, by one that ends the process at once.
    """
    handler = signal.getsignal(number)
    try:
        yield
    finally:
        if handler is not None and threading.current_thread() is threading.main_thread():
            signal.signal(number, handler)


@contextlib.contextmanager
def _blocked(number: signal.Signals) -> Iterator[None]:
    """Keep a signal from all processes that are started in the block; this one gets it afterwards.

    A terminal that is closed sends SIGHUP to Ray as well, and the run could save nothing any more.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {number})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _code_folders() -> list[str]:
    """Return the folders that `ray.init` puts first in every worker's `sys.path`: the script's, and this directory.

    What PYTHONPATH names stays where it is.
    """
    found = [os.path.abspath(os.curdir)]
    if hasattr(sys.modules["__main__"], "__file__"):  # no notebook
        script = os.path.dirname(os.path.realpath(sys.argv[0]))
        found += [script] if script in sys.path else []
    chosen = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    return [folder for folder in found if folder not in chosen]


@contextlib.contextmanager
def _own_token() -> Iterator[None]:
    """Give a local Ray a token that only its processes know.

    Left alone, Ray would write one to ~/.ray/auth_token, which everyone on the machine could read.
    """
    if any(name in os.environ for name in AUTHENTICATION):  # the user's choice
        yield
        return
    os.environ["RAY_AUTH_TOKEN"] = secrets.token_hex(32)  # Ray finds it and sets RAY_AUTH_MODE itself
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        yield
    finally:
        for name in AUTHENTICATION:
            os.environ.pop(name, None)
        AuthenticationTokenLoader.instance().reset_cache()


def _object_store_bytes() -> int:
    """Return half of /dev/shm's free space, between 128 MiB and 4 GiB: trajectories are small."""
    shm = Path("/dev/shm")
    free = shutil.disk_usage(shm).free if shm.exists() else 2**30
    return int(min(max(free * 0.5, MIN_SHM), 4 * 2**30))
