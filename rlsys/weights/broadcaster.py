"""The driver's side of a broadcast: one call to each learner rank and each engine, all under one deadline."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any, Protocol

from rlsys.config.schema import WeightsConfig
from rlsys.errors import DeadlineError, WorkerDiedError, WorkerError
from rlsys.weights.manifest import buckets, from_update_info
from rlsys.weights.receipt import Received, check_receipts

OpenCalls = dict[str, Any]  # unfinished Ray calls by worker name

logger = logging.getLogger(__name__)


class Waits(Protocol):
    """The driver's ways to wait for open calls (`rlsys.runtime.calls.Calls`)."""

    async def gather(self, calls: OpenCalls, *, what: str, deadline_s: float) -> dict[str, Any]:
        """Return every call's result, or raise what explains the first failures."""

    async def settle(self, calls: OpenCalls, *, what: str, deadline_s: float) -> None:
        """Wait until every call has ended, however."""


class Broadcaster(Protocol):
    """The way of a policy version to the engines: whole weights, or an adapter alone."""

    async def open(self) -> None:
        """Connect both sides once, or raise the error of the side that failed."""

    async def broadcast(self, policy_version: int) -> dict[str, float]:
        """Make every engine serve `policy_version`; engines that are lost meanwhile are left out.

        Returns: nothing when no engine is left, else
            `weights/stalled_s`, `weights/transfer_s` and `weights/reload_s`: seconds without generation, of the
            transfer and of loading, each the largest over the engines. For whole weights that are checked also
            `weights/compared_fraction`: the share of the bytes that were found again in the engines' parameters.

        Raises:
            WeightMismatchError: an engine does not hold what was sent.
            WorkerError: a side failed, and not because an engine was lost; the death of a rank is raised.
        """


class Engines(Protocol):
    """The engines that broadcasts reach."""

    membership: int  # a number that changes whenever an engine is lost or comes back

    @property
    def num_workers(self) -> int:
        """Number of engines that live now."""

    def report(self, error: WorkerDiedError) -> None:
        """Take the engine that the error names out of the pool, if it is one."""


class WeightSide(Protocol):
    """The sending side: the policy's ranks."""

    async def address(self) -> tuple[str, int]:
        """Return the host and a free port where the weight group meets."""

    async def weight_update_info(self, backend: str) -> tuple[Mapping[str, Any], Sequence[int]]:
        """Return what engines need to know before a transfer: the manifest, and with ipc the handles.

        The second value is what `begin_send_weights` gives from rank 0 with other backends: the buckets' checksums.
        """

    def begin_open_weights(self, backend: str, host: str, port: int, world_size: int) -> OpenCalls:
        """Start joining the weight group as its sender."""

    def begin_send_weights(self) -> OpenCalls:
        """Start sending the current weights; rank 0, which is the first, gives the buckets' checksums."""


class EngineSide(Engines, Protocol):
    """The receiving side: the rollout pool."""

    workers_per_engine: int

    def begin_join_weights(self, init_infos: list[dict[str, Any]]) -> OpenCalls:
        """Start joining the weight group, each engine with its own entry of `init_infos`."""

    def begin_receive_weights(self, update_info: Mapping[str, Any], policy_version: int) -> OpenCalls:
        """Start receiving `policy_version` on every engine; each gives a `Received`."""


class WeightBroadcaster:
    """The broadcaster of whole weights: joins both sides, then broadcasts after every policy update.

    The group of a broadcast has fixed members. When an engine is lost or comes back, both sides join anew.
    """

    def __init__(
        self, sender: WeightSide, receiver: EngineSide, waits: Waits, config: WeightsConfig, backend: str
    ) -> None:
        self._sender = sender
        self._receiver = receiver
        self._waits = waits
        self._config = config
        self._backend = backend
        self._opened = -1  # the membership that joined; -1 before the first has

    async def open(self) -> None:
        """Join both sides in one group: rank 0 is the sender, and each engine's workers follow."""
        membership = self._receiver.membership
        host, port = await self._sender.address()
        world_size = 1 + self._receiver.num_workers * self._receiver.workers_per_engine
        infos = [self._init_info(host, port, engine, world_size) for engine in range(self._receiver.num_workers)]
        calls = {
            **self._receiver.begin_join_weights(infos),
            **self._sender.begin_open_weights(self._backend, host, port, world_size),
        }
        await self._all(calls, "opening the weight channel", membership)
        self._opened = membership

    async def broadcast(self, policy_version: int) -> dict[str, float]:
        """See `Broadcaster.broadcast`."""
        return await among_the_living(self._receiver, lambda: self._broadcast(policy_version))

    async def _broadcast(self, policy_version: int) -> dict[str, float]:
        if self._opened != self._receiver.membership:
            await self.open()
        update_info, sent = await self._sender.weight_update_info(self._backend)
        # Both sides are started before either is awaited: they meet in a collective.
        receiving = self._receiver.begin_receive_weights(update_info, policy_version)
        # With ipc the handles in update_info are the transfer.
        sending = {} if self._backend == "ipc" else self._sender.begin_send_weights()
        what = f"broadcast of policy version {policy_version}"
        try:
            results = await self._all({**receiving, **sending}, what, self._opened)
        except WorkerError:
            if not sending:  # no call of the learner was open, which would have failed with it
                await self._check_learner(what)
            raise
        received: dict[str, Received] = {engine: results[engine] for engine in receiving}
        metrics = _slowest([each.times for each in received.values()])
        if not self._config.verify:
            return metrics
        sent = results[next(iter(sending))] if sending else sent
        cut = buckets(from_update_info(update_info), self._bucket_bytes)
        for engine, each in received.items():
            check_receipts(engine, each.receipts, sent, cut, policy_version)
        fractions = [receipt.compared_fraction for each in received.values() for receipt in each.receipts]
        return metrics | {"weights/compared_fraction": min(fractions)}

    async def _all(self, calls: OpenCalls, what: str, membership: int) -> dict[str, Any]:
        return await both_sides(self._waits, self._receiver, calls, what, self._config.deadline_s, membership)

    async def _check_learner(self, what: str) -> None:
        """Raise WorkerDiedError when the learner is gone: engines that read its memory fail with it."""
        try:
            await self._sender.address()
        except WorkerDiedError as error:
            raise WorkerDiedError(f"{what}: {error}", error.worker) from error

    def _init_info(self, host: str, port: int, engine: int, world_size: int) -> dict[str, Any]:
        info = {"bucket_bytes": self._bucket_bytes, "is_checked": self._config.verify}
        if self._backend == "ipc":
            return info
        return {
            **info,
            "master_address": host,
            "master_port": port,
            # Rank 0 is the sender. Each of the engine's workers adds its own rank to the offset.
            "rank_offset": 1 + engine * self._receiver.workers_per_engine,
            "world_size": world_size,
            "deadline_s": self._config.deadline_s,
        }

    @property
    def _bucket_bytes(self) -> int:
        return self._config.bucket_mib * 2**20


class AdapterSide(Protocol):
    """The sending side of a policy with adapters."""

    def begin_read_adapter(self) -> tuple[OpenCalls, Any]:
        """Start gathering the adapter; return the open calls and a Ray reference to the packed adapter."""


class AdapterEngineSide(Engines, Protocol):
    """The receiving side of a policy with adapters."""

    def begin_receive_adapter(self, adapter: Any, policy_version: int) -> OpenCalls:
        """Start loading an adapter on every engine."""


class AdapterBroadcaster:
    """The broadcaster of a policy's adapter alone, through Ray's object store."""

    def __init__(self, sender: AdapterSide, receiver: AdapterEngineSide, waits: Waits, config: WeightsConfig) -> None:
        self._sender = sender
        self._receiver = receiver
        self._waits = waits
        self._config = config

    async def open(self) -> None:
        """Do nothing: engines have the model that adapters belong to."""

    async def broadcast(self, policy_version: int) -> dict[str, float]:
        """See `Broadcaster.broadcast`."""
        return await among_the_living(self._receiver, lambda: self._broadcast(policy_version))

    async def _broadcast(self, policy_version: int) -> dict[str, float]:
        membership = self._receiver.membership
        reading, adapter = self._sender.begin_read_adapter()
        # Ray hands the object to the engines when it is there; the driver never has it.
        receiving = self._receiver.begin_receive_adapter(adapter, policy_version)
        what = f"broadcast of policy version {policy_version} (adapter)"
        calls, deadline_s = {**reading, **receiving}, self._config.deadline_s
        results = await both_sides(self._waits, self._receiver, calls, what, deadline_s, membership)
        return _slowest([results[engine] for engine in receiving])


async def both_sides(
    waits: Waits, engines: Engines, calls: OpenCalls, what: str, deadline_s: float, membership: int
) -> dict[str, Any]:
    """Wait for both sides of a transfer to the engines of `membership`, and report an engine that has died.

    After the loss of an engine every call must have ended, however, before the sides can meet again.
    """
    try:
        return await waits.gather(calls, what=what, deadline_s=deadline_s)
    except (WorkerError, DeadlineError) as error:
        if isinstance(error, WorkerDiedError):
            engines.report(error)
        if engines.membership != membership:
            await waits.settle(calls, what=f"{what}, after {error}", deadline_s=deadline_s)
        raise


async def among_the_living(engines: Engines, broadcast: Callable[[], Awaitable[dict[str, float]]]) -> dict[str, float]:
    """Broadcast again, to those that are left, for as long as engines are lost in it; nothing once none is left."""
    while engines.num_workers:
        membership = engines.membership
        try:
            return await broadcast()
        except (WorkerError, DeadlineError):
            if engines.membership == membership:
                raise
            logger.warning("broadcasting again, without the engine that was lost")
    return {}


def _slowest(times: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {f"weights/{name}": max(each[name] for each in times) for name in times[0]}
