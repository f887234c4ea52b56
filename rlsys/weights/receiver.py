"""The engines' side of a broadcast: rlsys's gloo backend for vLLM's weight-transfer protocol.

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
from rlsys.weights.bucket_receiver import BucketReceiver
from rlsys.weights.gloo import GlooChannel
from rlsys.weights.manifest import buckets, from_update_info, total_bytes, views
from rlsys.weights.packed_adapter import Sums, sums


@dataclass(kw_only=True)
class GlooInitInfo(WeightTransferInitInfo):
    """Address of the group, and this engine's ranks in it."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    bucket_bytes: int
    deadline_s: float


class GlooWeightTransferEngine(NCCLWeightTransferEngine):
    """vLLM's layerwise reload, fed by packed gloo broadcasts, with the CPU backend's tied output layer repaired.

    Inherited are the layerwise reload (start and end of an update) and the format of update_info; nothing uses NCCL.
    """

    init_info_cls = GlooInitInfo
    _channel: GlooChannel | None = None
    _buckets: BucketReceiver | None = None

    def init_transfer_engine(self, init_info: Any) -> None:
        """Join the broadcast group; block until the learner and every other engine have joined."""
        self._bucket_bytes = init_info.bucket_bytes  # the sender's: both sides must divide the manifest alike
        self._channel = GlooChannel(
            init_info.master_address,
            init_info.master_port,
            init_info.rank_offset + self.parallel_config.rank,
            init_info.world_size,
            init_info.deadline_s,
        )

    def begin(self, update_info: dict[str, Any]) -> None:
        """Start to receive one broadcast; the engine continues to generate meanwhile."""
        if self._channel is None:
            raise RuntimeError("the weight channel is not open: init_transfer_engine must be called first")
        cut = buckets(from_update_info(update_info), self._bucket_bytes)
        buffers = self._channel.buffers([total_bytes(bucket) for bucket in cut])
        self._buckets = BucketReceiver(self._channel, list(zip(cut, buffers, strict=True)))

    @property
    def buckets(self) -> BucketReceiver:
        """The broadcast that was begun last."""
        if self._buckets is None:
            raise RuntimeError("no transfer was begun: begin must be called first")
        return self._buckets

    def receive_weights(self, update_info: NCCLWeightTransferUpdateInfo) -> None:
        """Load the parameters of the broadcast that was begun, layer by layer as they arrive."""
        # Views, not copies: the buffers stay valid until the sender's next broadcast.
        for bucket, buffer in self.buckets:
            self.model.load_weights(views(buffer, bucket))

    def finish_weight_update(self) -> None:
        """End the layerwise reload and repair the tied output layer."""
        super().finish_weight_update()
        share_tied_head(self.model)

    def shutdown(self) -> None:
        """Leave the broadcast group."""
        self._channel = None


def share_tied_head(model: torch.nn.Module) -> None:
    """Let a tied output layer multiply with the embedding's packed copy.

    The CPU backend multiplies with a packed copy of a weight, made when the layer was loaded. A reload packs again the
    layers that received weights. A tied `lm_head` receives none of its own and would silently keep the old copy. The
    embedding is the same matrix and was packed with the others, although nothing multiplies with it.
    """
    for module in model.modules():
        head = getattr(module, "lm_head", None)
        embedding = getattr(getattr(module, "model", None), "embed_tokens", None)
        if head is None or embedding is None or getattr(head, "weight", None) is not embedding.weight:
            continue
        head.cpu_linear = embedding.cpu_linear  # the closure that multiplies with the packed copy


class WeightReceiver:
    """Methods that a rollout worker calls in vLLM's worker processes, beyond vLLM's own protocol.

    vLLM mixes this class into its worker class; importing its module registers the gloo backend.
    """

    weight_transfer_engine: GlooWeightTransferEngine
    model_runner: Any

    def begin_transfer(self, update_info: dict[str, Any]) -> None:
        """Start to receive a broadcast; return at once."""
        self.weight_transfer_engine.begin(update_info)

    def is_transfer_done(self) -> bool:
        """Return whether all of it has arrived. Raises RuntimeError with the cause when the transfer failed."""
        return self.weight_transfer_engine.buckets.is_done()

    def adapter_sums(self, adapter_id: int) -> Sums:
        """Return the sums of an adapter as this process holds it (`packed_adapter.tensor_sums` of its file).

        Raises:
            RuntimeError: the adapter is not active.
        """
        manager = self.model_runner.lora_manager._adapter_manager
        held = manager.get_adapter(adapter_id)
        if held is None or adapter_id not in manager.lora_index_to_id:
            raise RuntimeError(f"adapter {adapter_id} is not active; the active ones are {manager.lora_index_to_id}")
        layers = held.loras.values()
        return {
            "A": sums(_present(layer.lora_a for layer in layers)),
            "B": sums(_present(layer.lora_b for layer in layers)),
        }

    def transfer_times(self) -> tuple[float, float]:
        """Return the seconds that the last transfer took, and those that loading waited for it."""
        received = self.weight_transfer_engine.buckets
        return received.transfer_s, received.waited_s


def _present(matrices: Iterable[Any]) -> Iterator[torch.Tensor]:
    """Yield all matrices; a layer that vLLM has merged from several has a list of them, with None for missing ones."""
    # For example q, k and v of an attention layer, where an adapter may have only q and v.
    for packed in matrices:
        several = packed if isinstance(packed, list | tuple) else [packed]
        yield from (matrix for matrix in several if matrix is not None)


# vLLM imports this module in every process that holds the model, and nothing else imports it. Such a process must not
# outlive the one that started it, which cannot stop it once it is killed. Guarded, because registering a name twice is
# an error.
if "gloo" not in WeightTransferEngineFactory._registry:
    WeightTransferEngineFactory.register_engine("gloo", GlooWeightTransferEngine)
    exit_with_parent()
