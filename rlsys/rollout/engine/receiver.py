"""The engines' side of a broadcast: rlsys's backends for vLLM's weight-transfer protocol.

vLLM imports this module in each of its worker processes (`worker_extension_cls`), which registers the backends there.
"""

from __future__ import annotations

import multiprocessing
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from vllm.distributed.weight_transfer.base import WeightTransferInitInfo, WeightTransferUpdateInfo
from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
from vllm.distributed.weight_transfer.nccl_engine import NCCLWeightTransferEngine
from vllm.model_executor.model_loader.mtp_validation import disable_mtp_completeness_check
from vllm.model_executor.model_loader.reload.layerwise import get_layerwise_info

from rlsys.rollout.engine.direct_loads import DirectLoads
from rlsys.runtime.processes import exit_with_parent
from rlsys.weights.arrival import Arrivals
from rlsys.weights.backend import engine_backend
from rlsys.weights.bucket_receiver import BucketReceiver
from rlsys.weights.checksum import checksum
from rlsys.weights.gloo import GlooChannel
from rlsys.weights.manifest import Entry, buckets, from_update_info, total_bytes, views
from rlsys.weights.nccl import NcclChannel
from rlsys.weights.packed_adapter import Sums, sums

Bucket = tuple[Sequence[Entry], torch.Tensor]  # its parameters and its bytes


@dataclass(kw_only=True)
class JoinInfo(WeightTransferInitInfo):
    """How a broadcast is divided; for channels with a group also its address and this engine's ranks in it."""

    bucket_bytes: int
    is_checked: bool
    master_address: str = ""
    master_port: int = 0
    rank_offset: int = 0
    world_size: int = 0
    deadline_s: float = 0.0


@dataclass(kw_only=True)
class UpdateInfo(WeightTransferUpdateInfo):
    """What a broadcast carries (`manifest.to_update_info`); with ipc also a handle for each bucket."""

    names: list[str]
    dtype_names: list[str]
    shapes: list[list[int]]
    units: list[int]
    handles: list[dict[str, tuple[Any, ...]]] = field(default_factory=list)


class BucketEngine(NCCLWeightTransferEngine):
    """vLLM's layerwise reload, fed with buckets, with its faults repaired.

    Inherited is the layerwise reload (start and end of an update); how buckets arrive is the subclasses'.
    """

    init_info_cls = JoinInfo
    update_info_cls = UpdateInfo
    _is_updating = False

    def init_transfer_engine(self, init_info: Any) -> None:
        """Join the broadcast group; block until the learner and every other engine have joined."""
        self._join = init_info
        self.arrivals = Arrivals()
        self.shutdown()  # of a group with other members

    def start_weight_update(self) -> None:
        """Begin the layerwise reload."""
        if self._is_updating:  # an update that failed: its layers are put in order first, whatever they hold
            super().finish_weight_update()
        self._is_updating = True
        pack_experts_again(self.model)
        names = {name for name, _ in self.model.named_parameters()}  # tied ones once, which a reload separates
        super().start_weight_update()
        # Without what the engine has computed from the parameters of checkpoints, as MLA's W_UK.
        self.arrivals.begin(name for name, _ in self.model.named_parameters() if name in names)

    def receive_weights(self, update_info: UpdateInfo) -> None:
        """Load the parameters of the broadcast, layer by layer as they arrive."""
        with disable_mtp_completeness_check(), DirectLoads(self.model):
            for bucket, buffer in self._received(update_info):
                # Views, not copies: the buffers stay valid until all layers are loaded.
                named = views(buffer, bucket)
                loaded = self.model.load_weights(named)
                if self._join.is_checked:
                    # Not in gloo's receiving thread: there a parallel operation of torch hung engines on CPUs.
                    self.arrivals.add(named, loaded, checksum(buffer))

    def finish_weight_update(self) -> None:
        """End the layerwise reload and repair the tied output layer."""
        self.arrivals.lose(unloaded_parameters(self.model))
        super().finish_weight_update()
        self._is_updating = False
        share_tied_head(self.model)
        if self._join.is_checked:
            self.arrivals.finish(dict(self.model.named_parameters()))

    def _received(self, update_info: UpdateInfo) -> Iterator[Bucket]:
        """Yield every bucket in the order of the manifest."""
        raise NotImplementedError

    def _cut(self, update_info: UpdateInfo) -> list[list[Entry]]:
        # The sender's size: both sides must divide the manifest alike.
        return buckets(from_update_info(asdict(update_info)), self._join.bucket_bytes)


class NcclEngine(BucketEngine):
    """Buckets by NCCL."""

    _channel: NcclChannel | None = None

    def init_transfer_engine(self, init_info: Any) -> None:
        """See `BucketEngine.init_transfer_engine`."""
        super().init_transfer_engine(init_info)
        rank = init_info.rank_offset + self.parallel_config.rank
        self._channel = NcclChannel(
            init_info.master_address,
            init_info.master_port,
            rank,
            init_info.world_size,
            self.device,
            init_info.deadline_s,
        )

    def _received(self, update_info: UpdateInfo) -> Iterator[Bucket]:
        assert self._channel is not None
        yield from self._channel.received(self._cut(update_info))

    def shutdown(self) -> None:
        """Leave the broadcast group."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


class IpcEngine(BucketEngine):
    """Buckets in memory of the learner on the same GPU, which this process maps."""

    def _received(self, update_info: UpdateInfo) -> Iterator[Bucket]:
        from torch.multiprocessing.reductions import rebuild_cuda_tensor

        device = torch.cuda.get_device_properties(self.device.index)
        for bucket, handle in zip(self._cut(update_info), update_info.handles, strict=True):
            if str(device.uuid) not in handle:
                raise RuntimeError(f"the learner's memory is on GPU {', '.join(handle)}, the engine on {device.uuid}")
            arguments = list(handle[str(device.uuid)])
            arguments[6] = self.device.index  # the learner's number of the device is not this process's
            yield bucket, rebuild_cuda_tensor(*arguments)


class GlooEngine(BucketEngine):
    """Buckets by gloo, received while the engine still generates."""

    _channel: GlooChannel | None = None
    _buckets: BucketReceiver | None = None

    def init_transfer_engine(self, init_info: Any) -> None:
        """See `BucketEngine.init_transfer_engine`."""
        super().init_transfer_engine(init_info)
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
        cut = self._cut(UpdateInfo(**update_info))
        buffers = self._channel.buffers([total_bytes(bucket) for bucket in cut])
        self._buckets = BucketReceiver(self._channel, list(zip(cut, buffers, strict=True)))

    @property
    def buckets(self) -> BucketReceiver:
        """The broadcast that was begun last."""
        if self._buckets is None:
            raise RuntimeError("no transfer was begun: begin must be called first")
        return self._buckets

    def _received(self, update_info: UpdateInfo) -> Iterator[Bucket]:
        yield from self.buckets

    def shutdown(self) -> None:
        """Leave the broadcast group."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None


def pack_experts_again(model: torch.nn.Module) -> None:
    """Let the CPU backend's mixtures of experts begin a reload as they began the first load.

    That backend packs experts' weights once, with the kernel it makes at the first load. A reload would put weights as
    they come where the kernel expects packed ones. Without a kernel it makes a new one and packs them.
    """
    for module in model.modules():
        method: Any = getattr(module, "quant_method", None)
        if getattr(getattr(method, "unquantized_backend", None), "name", None) == "CPU":
            method.moe_kernel = None


def unloaded_parameters(model: torch.nn.Module) -> set[str]:
    """Return the parameters of layers that a reload gave nothing to, whatever the model's loader says.

    vLLM keeps the old weights of such layers and only logs it.
    """
    lost = set()
    for prefix, module in model.named_modules():
        info = get_layerwise_info(module)
        if info.can_load() and info.load_numel == 0:
            lost |= {f"{prefix}.{name}" for name, _ in module.named_parameters(recurse=False)}
    return lost


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
        if hasattr(embedding, "cpu_linear"):  # on CPUs only: the closure that multiplies with the packed copy
            head.cpu_linear = embedding.cpu_linear


class WeightReceiver:
    """Methods that a rollout worker calls in vLLM's worker processes, beyond vLLM's own protocol.

    vLLM mixes this class into its worker class; importing its module registers the gloo backend.
    """

    # A BucketEngine; a GlooEngine for what begins with a transfer; None where no weights are ever received.
    weight_transfer_engine: Any
    model_runner: Any

    def begin_transfer(self, update_info: dict[str, Any]) -> None:
        """Start to receive a broadcast; return at once."""
        self.weight_transfer_engine.begin(update_info)

    def is_transfer_done(self) -> bool:
        """Return whether all of it has arrived. Raises RuntimeError with the cause when the transfer failed."""
        return self.weight_transfer_engine.buckets.is_done()

    def leave_broadcasts(self) -> None:
        """Leave the broadcast group, if the engine ever joined one."""
        if self.weight_transfer_engine is not None:
            self.weight_transfer_engine.shutdown()

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

    def arrival(self) -> dict[str, Any]:
        """Return what the last broadcast brought (`Arrivals.report`)."""
        report: dict[str, Any] = self.weight_transfer_engine.arrivals.report()
        return report

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


# vLLM imports this module in every process that holds the model. Guarded, because registering a name twice is an error.
ENGINES: dict[str, type[BucketEngine]] = {"gloo": GlooEngine, "nccl": NcclEngine, "ipc": IpcEngine}
if engine_backend("gloo") not in WeightTransferEngineFactory._registry:
    for backend, engine in ENGINES.items():
        WeightTransferEngineFactory.register_engine(engine_backend(backend), engine)
    if multiprocessing.parent_process() is not None:
        exit_with_parent()  # a rank of a tensor-parallel engine: a rollout worker that is killed cannot stop it
