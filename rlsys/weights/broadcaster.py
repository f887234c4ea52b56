"""The driver's side: one control call a broadcast to each learner rank and each engine, all under one deadline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from rlsys.config.schema import WeightsConfig

Calls = dict[str, Any]
"""Unfinished calls by worker name."""
Wait = Callable[..., dict[str, Any]]


class SendingSide(Protocol):
    """The learner group, as far as weights are concerned."""

    def weight_address(self) -> tuple[str, int]: ...
    def begin_open_weights(self, backend: str, host: str, port: int, world_size: int) -> Calls: ...
    def weight_update_info(self, backend: str) -> Mapping[str, Any]: ...
    def begin_send_weights(self) -> Calls: ...


class ReceivingSide(Protocol):
    """The rollout pool, as far as weights are concerned."""

    num_workers: int
    workers_per_engine: int

    def begin_join_weights(self, init_infos: list[dict[str, Any]]) -> Calls: ...
    def begin_receive_weights(self, update_info: Mapping[str, Any], policy_version: int) -> Calls: ...


class WeightBroadcaster:
    """Opens the group once, then broadcasts after every policy update."""

    def __init__(
        self, sender: SendingSide, receiver: ReceivingSide, wait: Wait, config: WeightsConfig, backend: str
    ) -> None:
        self._sender = sender
        self._receiver = receiver
        self._wait = wait
        self._config = config
        self._backend = backend

    def open(self) -> None:
        """Both sides join; rank 0 is the sender, each engine's workers follow. Raises the failing side's error."""
        host, port = self._sender.weight_address()
        world_size = 1 + self._receiver.num_workers * self._receiver.workers_per_engine
        infos = [self._init_info(host, port, engine, world_size) for engine in range(self._receiver.num_workers)]
        calls = {
            **self._receiver.begin_join_weights(infos),
            **self._sender.begin_open_weights(self._backend, host, port, world_size),
        }
        self._wait(calls, what="opening the weight channel", deadline_s=self._config.deadline_s)

    def broadcast(self, policy_version: int) -> dict[str, float]:
        """Every engine serves `policy_version` when this returns.

        Returns: metrics, of the slowest engine: seconds that generation stood still, of the transfer and of loading.
        """
        update_info = self._sender.weight_update_info(self._backend)
        calls = self._receiver.begin_receive_weights(update_info, policy_version)
        engines = list(calls)
        if self._backend != "ipc":  # with ipc the handles in update_info are the transfer
            calls.update(self._sender.begin_send_weights())
        what = f"broadcast of policy version {policy_version}"
        answers = self._wait(calls, what=what, deadline_s=self._config.deadline_s)
        times = [answers[engine] for engine in engines]
        return {f"weights/{name}": max(each[name] for each in times) for name in times[0]}

    def _init_info(self, host: str, port: int, engine: int, world_size: int) -> dict[str, Any]:
        if self._backend == "ipc":
            return {"packed": False}
        info: dict[str, Any] = {
            "master_address": host,
            "master_port": port,
            "rank_offset": 1 + engine * self._receiver.workers_per_engine,
            "world_size": world_size,
        }
        bucket_bytes = self._config.bucket_mib * 2**20
        if self._backend == "gloo":
            return {**info, "bucket_bytes": bucket_bytes, "deadline_s": self._config.deadline_s}
        return {**info, "packed": True, "packed_buffer_size_bytes": bucket_bytes, "packed_num_buffers": 2}


class AdapterSender(Protocol):
    """The learner group of a policy with adapters."""

    def begin_read_adapter(self) -> tuple[Calls, Any]: ...


class AdapterReceiver(Protocol):
    """The rollout pool of a policy with adapters."""

    def begin_receive_adapter(self, adapter: Any, policy_version: int) -> Calls: ...


class AdapterBroadcaster:
    """The same for a policy with adapters: the adapter alone travels, through Ray's object store."""

    def __init__(self, sender: AdapterSender, receiver: AdapterReceiver, wait: Wait, config: WeightsConfig) -> None:
        self._sender = sender
        self._receiver = receiver
        self._wait = wait
        self._config = config

    def open(self) -> None:
        """Nothing to open: engines have the model that adapters belong to."""

    def broadcast(self, policy_version: int) -> dict[str, float]:
        """Every engine serves `policy_version` when this returns; metrics as `WeightBroadcaster.broadcast`."""
        read, adapter = self._sender.begin_read_adapter()
        calls = self._receiver.begin_receive_adapter(adapter, policy_version)
        engines = list(calls)
        what = f"broadcast of policy version {policy_version} (adapter)"
        answers = self._wait({**read, **calls}, what=what, deadline_s=self._config.deadline_s)
        times = [answers[engine] for engine in engines]
        return {f"weights/{name}": max(each[name] for each in times) for name in times[0]}
