"""A learner and engines for broadcasts between processes: rlsys's and vLLM's own halves around small models."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import nn
from torch.utils._python_dispatch import _disable_current_modes

from rlsys.errors import WorkerDiedError
from rlsys.runtime.calls import Calls
from rlsys.weights.receipt import Receipt, Received
from tests.fakes import streams
from tests.fakes.workers import Worker

# In this order: larger than a bucket; float32 of an odd size, so that what follows it is not aligned; divided under
# tensor parallelism; larger than a bucket again, so that the last one, without a number, has a bucket of its own.
SHAPES: dict[str, tuple[int, ...]] = {
    "embed": (20, 8),
    "layers.0.gate": (3, 5),
    "layers.0.up": (4, 6),
    "layers.1.up": (4, 6),
    "layers.1.norm": (3,),
    "layers.1.down": (4, 4),
    "head": (20, 8),
    "tail": (0,),
}
FUSED = {"embed": "fused.first", "head": "fused.last"}
BUCKET_BYTES = 192
BUCKETS = [320, 162, 32, 320, 0]  # bytes


class Policy(nn.Module):
    """A model as a learner holds it, in float32."""

    _keep_in_fp32_modules_strict = ("gate",)

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        for name, shape in SHAPES.items():
            put(self, f"{name}.weight", nn.Parameter(torch.rand(shape, generator=generator)))


class Served(nn.Module):
    """A model as an engine's process holds it, in bfloat16 but for the gate, with its share of divided parameters.

    The first parameter and one of the last are one module, as vLLM fuses some: it keeps what has arrived of a module
    until the rest is there.
    """

    def __init__(self, rank: int, num_ranks: int) -> None:
        super().__init__()
        self.broken: str | None = None
        for name, (rows, *columns) in SHAPES.items():
            is_divided = name.endswith("up")
            dtype = torch.float32 if name.endswith("gate") else torch.bfloat16
            shape = (rows // num_ranks if is_divided else rows, *columns)
            parameter: Any = nn.Parameter(torch.zeros(shape, dtype=dtype), requires_grad=False)
            if is_divided:
                parameter.weight_loader, parameter.tp_rank = load_share, rank
            put(self, FUSED.get(name, f"{name}.weight"), parameter)

    def load_weights(self, weights: Any) -> set[str]:
        from vllm.model_executor.model_loader.weight_utils import default_weight_loader

        parameters, loaded = dict(self.named_parameters()), set()
        for sent_name, tensor in weights:
            if sent_name == self.broken:
                raise ValueError(f"{sent_name} does not fit")
            name = FUSED.get(sent_name.removesuffix(".weight"), sent_name)
            getattr(parameters[name], "weight_loader", default_weight_loader)(parameters[name], tensor)
            loaded.add(name)
        return loaded

    def held(self) -> dict[str, torch.Tensor]:
        """Return the parameters under the names that they are sent under."""
        sent_names = {held_name: f"{name}.weight" for name, held_name in FUSED.items()}
        return {sent_names.get(name, name): parameter for name, parameter in self.named_parameters()}


def put(module: nn.Module, name: str, parameter: nn.Parameter) -> None:
    """Add a parameter by its dotted name, with the modules on the way to it."""
    *path, last = name.split(".")
    for part in path:
        if part not in module._modules:
            module.add_module(part, nn.Module())
        module = module.get_submodule(part)
    module.register_parameter(last, parameter)


def load_share(param: Any, loaded_weight: torch.Tensor) -> None:
    """Load this rank's rows, as vLLM's parallel layers do; vLLM's reload knows the first argument by its name."""
    size = param.shape[0]
    param.data.copy_(loaded_weight.narrow(0, param.tp_rank * size, size))


def build_learner(backend: str, is_checked: bool = True) -> Any:
    """Return rank 0 of a policy without DeepSpeed's engine around the model."""
    from rlsys.config.compose import load_config
    from rlsys.learner.policy_services import PolicyServices
    from rlsys.learner.setup import PolicySetup
    from rlsys.weights.sender import WeightSender

    config = load_config([f"weights.backend={backend}", "cluster.num_gpus=2"])
    learner = PolicyServices(0, PolicySetup.from_config(config, "model", 100))
    module = nn.Module()
    module.hf = Policy()
    learner._engine = SimpleNamespace(module=module)
    learner._sender = WeightSender(module.hf, torch.bfloat16, 0, BUCKET_BYTES, is_checked=is_checked)
    return learner


def build_engine_process(backend: str, rank: int, num_ranks: int, device: int = 0) -> Any:
    """Return one of an engine's processes: vLLM's worker with rlsys's methods, around a small model."""
    from vllm.config import VllmConfig
    from vllm.config.weight_transfer import WeightTransferConfig
    from vllm.distributed.weight_transfer.factory import WeightTransferEngineFactory
    from vllm.model_executor.model_loader.reload import record_metadata_for_reloading
    from vllm.v1.worker.gpu_worker import Worker as VllmWorker

    from rlsys.rollout.engine.receiver import WeightReceiver

    process: Any = type("Process", (WeightReceiver, VllmWorker), {})
    process = process.__new__(process)
    process.vllm_config = VllmConfig(weight_transfer_config=WeightTransferConfig(backend=backend))
    process.vllm_config.parallel_config.rank = rank
    process.model_runner = SimpleNamespace(reset_lora_state=lambda: None)
    process._weight_update_active = process._weight_update_is_draft = False
    model = Served(rank, num_ranks)
    record_metadata_for_reloading(model)
    process.weight_transfer_engine = WeightTransferEngineFactory.create_engine(
        process.vllm_config.weight_transfer_config, process.vllm_config, torch.device("cpu", device), model
    )
    return process


class Learner:
    """The sending side of one rank."""

    def __init__(self, worker: Worker, host: str, port: int) -> None:
        self.worker = worker
        self._address = host, port

    async def address(self) -> tuple[str, int]:
        call = self.worker.call(is_alive)
        await Calls().result(call, who="learner/0", what="policy address", deadline_s=60.0)
        return self._address

    def begin_open_weights(self, *args: Any) -> dict[str, Any]:
        return {"learner/0": self.worker.call(open_weights, *args)}

    async def weight_update_info(self, backend: str) -> tuple[Mapping[str, Any], Sequence[int]]:
        if backend == "ipc":
            exported: tuple[Mapping[str, Any], Sequence[int]] = await self.worker.call(export_weights)
            return exported
        return await self.worker.call(update_info), ()

    def begin_send_weights(self) -> dict[str, Any]:
        return {"learner/0": self.worker.call(send_weights)}


class Engines:
    """The receiving side: engines of several processes each."""

    def __init__(self, engines: list[list[Worker]]) -> None:
        self.engines = engines
        self.num_workers = len(engines)
        self.workers_per_engine = len(engines[0])
        self.membership = 0

    def report(self, error: WorkerDiedError) -> None:
        """Keep it: there is nobody who could replace it."""

    def begin_join_weights(self, init_infos: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            f"rollout/{number}": _all(engine, join_weights, info)
            for number, (engine, info) in enumerate(zip(self.engines, init_infos, strict=True))
        }

    def begin_receive_weights(self, update_info: Mapping[str, Any], policy_version: int) -> dict[str, Any]:
        return {f"rollout/{n}": _received(engine, update_info) for n, engine in enumerate(self.engines)}


async def _received(engine: list[Worker], update_info: Mapping[str, Any]) -> Received:
    reports = await _all(engine, receive_weights, dict(update_info))
    return Received({"stalled_s": 0.0}, [Receipt(**report) for report in reports])


async def _all(engine: list[Worker], function: Any, *args: Any) -> list[Any]:
    return await asyncio.gather(*(worker.call(function, *args) for worker in engine))


# What runs in the workers: calls name functions, which both sides can import.


def is_alive(held: Any) -> bool:
    return True


def open_weights(learner: Any, *args: Any) -> None:
    learner.open_weights(*args)


def update_info(learner: Any) -> dict[str, Any]:
    info: dict[str, Any] = learner._sender.update_info()
    return info


def send_weights(learner: Any) -> list[int]:
    sums: list[int] = learner.send_weights()
    return sums


def export_weights(learner: Any) -> Any:
    return learner.export_weights()


def join_weights(process: Any, info: dict[str, Any]) -> None:
    process.init_weight_transfer_engine(info)


def receive_weights(process: Any, info: dict[str, Any]) -> dict[str, Any]:
    """Receive a broadcast; what it carries comes as vLLM's front end sends it to the engine."""
    from vllm.v1.serial_utils import MsgpackDecoder, MsgpackEncoder

    info = MsgpackDecoder().decode(MsgpackEncoder().encode(info))
    process.start_weight_update()
    process.update_weights(info)
    process.finish_weight_update()
    report: dict[str, Any] = process.arrival()
    return report


def train(learner: Any) -> dict[str, Any]:
    """Change every parameter, in kernels that are still to run; return what engines should hold then."""
    hf = learner._engine.module.hf
    streams.synchronize_all()
    with _disable_current_modes(), torch.no_grad():
        trained = {name: parameter * -1.5 for name, parameter in hf.named_parameters()}
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.mul_(-1.5)
    return plain({name: value if "gate" in name else value.bfloat16() for name, value in trained.items()})


def held(process: Any) -> dict[str, Any]:
    """Return the parameters of an engine's process."""
    return plain(process.weight_transfer_engine.model.held())


def plain(tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    with _disable_current_modes():
        return {name: tensor.float().tolist() for name, tensor in tensors.items()}


def expected_on(rank: int, num_ranks: int, sent: Mapping[str, list[Any]]) -> dict[str, list[Any]]:
    """Return one process's share of what was sent."""
    rows = {name: len(values) // num_ranks for name, values in sent.items() if name.endswith("up.weight")}
    return {name: v if name not in rows else v[rank * rows[name] :][: rows[name]] for name, v in sent.items()}
