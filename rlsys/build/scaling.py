"""The answer of a run to `rlsys scale`: it looks for requests, checks them as at its start, and has them done."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

from rlsys.config.cluster_address import cluster_address
from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.preflight.checks import check_engines
from rlsys.preflight.devices import check_devices
from rlsys.run_folder.scale_requests import DONE, REFUSED, TAKEN, ScaleRequests, answer, read

LOOK_EVERY_S = 1.0

logger = logging.getLogger(__name__)


class Scaler(Protocol):
    """What changes the number of engines (`rlsys.orchestrator.scaling.EngineScaler`)."""

    async def resize(self, wanted: int, report: Callable[[str], None]) -> str | None:
        """Let engines join or leave; return what failed, after which there are as many as before, or None."""


class Scaling:
    """The requests to one run, done one after the other, and the configuration that follows from them."""

    def __init__(self, config: Config, run_dir: Path, scaler: Scaler) -> None:
        """Begin without requests: those that are there were made to an earlier run."""
        self.config = config  # with the number of engines that was asked for last, if they are there
        self._requests = ScaleRequests(run_dir)
        self._scaler = scaler
        self._requests.clear()

    async def watch(self) -> None:
        """Look for requests, for as long as the run lasts."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            file = self._requests.oldest()
            if file is not None:
                await self._serve(file)

    async def _serve(self, file: Path) -> None:
        request = read(file)
        if request is None:  # withdrawn
            return
        wanted, report = request.rollout, partial(_answer, file)
        logger.info("asked for %d engines", wanted)
        failure: str | None
        try:
            config = resized(self.config, wanted)
        except ConfigError as error:
            failure = str(error)
        else:
            failure = await self._scaler.resize(wanted, partial(report, TAKEN))
        if failure is not None:
            logger.warning("the number of engines stays as it was: %s", failure)
            report(REFUSED, failure)
            return
        self.config = config
        report(DONE, f"the run has rollout={wanted}")


def resized(config: Config, engines: int) -> Config:
    """Return the configuration with another number of engines. Raises ConfigError where a run could not start so.

    On a cluster that the run has joined, more engines may use more GPUs; a local Ray has those it was started with.
    """
    rollout, cluster = config.rollout, config.cluster
    if cluster.num_gpus and cluster_address(cluster) is not None:
        more = max(0, engines - rollout.num_workers) * rollout.tensor_parallel_size
        cluster = replace(cluster, num_gpus=cluster.num_gpus + more)
    found = replace(config, rollout=replace(rollout, num_workers=engines), cluster=cluster)
    check_engines(found)
    check_devices(found, training=True)
    return found


def _answer(file: Path, state: str, text: str) -> None:
    """Write an answer; a disk that is full is no reason to end the run."""
    try:
        answer(file, state, text)
    except OSError as error:
        logger.warning("%s could not be answered (%s): %s", file, error, text)
