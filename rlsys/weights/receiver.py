"""The engines' side: rlsys' gloo backend for vLLM's weight-transfer protocol.

vLLM imports this module in each of its worker processes (`worker_extension_cls`), which registers the backend there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine, NCCLWeightTransferUpdateInfo

from rlsys.runtime.processes import exit_with_parent
from rlsys.weights.adapter import Sums, sums
from rlsys.weights.gloo import GlooChannel
from rlsys.weights.inbox import Inbox
from rlsys.weights.manifest import buckets, from_update_info, total_bytes, views


@dataclass(kw_only=True)
class GlooInitInfo(WeightTransferInitInfo):
    """Where the group meets, and this engine's place in it."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    bucket_bytes: int
    deadline_s: float


class GlooWeightTransferEngine(NCCLWeightTransferEngine):
    """vLLM's layerwise reload fed by packed gloo broadcasts, with the CPU backend's tied output layer repaired."""

    init_info_cls = GlooInitInfo
    _channel: GlooChannel | None = None
    _inbox: Inbox | None = None

    def init_transfer_engine(self, init_info: Any) -> None:
        """Join the broadcast group; blocks until the learner and every other engine have joined."""
        self._bucket_bytes = init_info.bucket_bytes
        self._channel = GlooChannel(
            init_info.master_address,
            init_info.master_port,
            init_info.rank_offset + self.parallel_config.rank,
            init_info.world_size,
            init_info.deadline_s,
        )

    def begin(self, update_info: dict[str, Any]) -> None:
        """Start to receive one broadcast beside whatever the engine does."""
        if self._channel is None:
            raise RuntimeError("the weight channel is not open: init_transfer_engine has not run")
        cut = buckets(from_update_info(update_info), self._bucket_bytes)
        rooms = self._channel.rooms([total_bytes(bucket) for bucket in cut])
        self._inbox = Inbox(self._channel, list(zip(cut, rooms, strict=True)))

    @property
    def inbox(self) -> Inbox:
        """The broadcast that was begun last."""
        if self._inbox is None:
            raise RuntimeError("no transfer was begun")
        return self._inbox

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Hand the parameters of the broadcast that was begun to the layerwise reload, as they come in."""
        for bucket, buffer in self.inbox:
            self.model.load_weights(views(buffer, bucket))

    def finish_weight_update(self) -> None:
        super().finish_weight_update()
        share_tied_head(self.model)

    def shutdown(self) -> None:
        self._channel = None


def share_tied_head(model: torch.nn.Module) -> None:
    """Let a tied output layer multiply with what its embedding was packed into.

    The CPU backend multiplies with a packed copy made when the layer was loaded. A reload packs the layers that
    received weights; a tied `lm_head` receives none of its own and would keep the old copy, silently. The embedding,
    which is the same matrix, was packed with the others, for a product that nobody takes of it.
    """
    for module in model.modules():
        head = getattr(module, "lm_head", None)
        embedding = getattr(getattr(module, "model", None), "embed_tokens", None)
        if head is None or embedding is None or getattr(head, "weight", None) is not embedding.weight:
            continue
        head.cpu_linear = embedding.cpu_linear


class WeightReceiver:
    """vLLM mixes this into its worker class: what a rollout worker asks of the gloo backend beyond vLLM's protocol.

    Importing the module is what registers the backend.
    """

    weight_transfer_engine: GlooWeightTransferEngine
    model_runner: Any

    def begin_transfer(self, update_info: dict[str, Any]) -> None:
        """Start to receive a broadcast; returns at once."""
        self.weight_transfer_engine.begin(update_info)

    def is_transfer_done(self) -> bool:
        """Whether all of it is here. Raises what the transfer failed of."""
        return self.weight_transfer_engine.inbox.is_done()

    def adapter_sums(self, adapter_id: int) -> Sums:
        """Of an adapter as this process holds it, what `rlsys.weights.adapter.tensor_sums` gives of its file."""
        manager = self.model_runner.lora_manager._adapter_manager
        held = manager.get_adapter(adapter_id)
        if held is None or adapter_id not in manager.lora_index_to_id:
            raise RuntimeError(f"adapter {adapter_id} is not active; active are {manager.lora_index_to_id}")
        layers = held.loras.values()
        return {
            "A": sums(_present(layer.lora_a for layer in layers)),
            "B": sums(_present(layer.lora_b for layer in layers)),
        }

    def transfer_times(self) -> tuple[float, float]:
        """Seconds that the last transfer took, and that loading waited for it."""
        inbox = self.weight_transfer_engine.inbox
        return inbox.transfer_s, inbox.waited_s


def _present(matrices: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Of a layer that vLLM packs of several there is a list, with gaps."""
    for packed in matrices:
        several = packed if isinstance(packed, list | tuple) else [packed]
        yield from (matrix for matrix in several if matrix is not None)


if "gloo" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("gloo", GlooWeightTransferEngine)
    exit_with_parent()
