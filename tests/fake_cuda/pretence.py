"""What `torch.cuda` answers on the imaginary GPU: functions of PyTorch's CUDA build that its CPU build lacks.

Nothing of rlsys is replaced. DeepSpeed and transformers call these functions too.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing import reductions
from torch.nn.attention import flex_attention
from torch.testing._internal.distributed.fake_pg import FakeStore

_init_process_group = dist.init_process_group

GIB = 2**30
PROPERTIES = SimpleNamespace(
    name="imaginary GPU", major=9, minor=0, total_memory=80 * GIB, multi_processor_count=132, uuid="GPU-imaginary"
)


class Stream:
    """The one stream of the device, or a mark in it. Nothing runs there, so whoever waits is through at once."""

    cuda_stream = 0
    device = torch.device("cuda", 0)

    def __init__(self, *_: Any, **__: Any) -> None:
        pass

    def synchronize(self, *_: Any) -> None:
        """Do nothing."""

    wait = record = record_event = wait_event = wait_stream = synchronize


def pretend() -> None:
    """Replace what needs the CUDA build or a driver, in this process and for good."""
    for name, value in VALUES.items():
        setattr(torch.cuda, name, _returns(value))
    torch.cuda.Stream = torch.cuda.Event = Stream
    torch.cuda.stream = lambda _: contextlib.nullcontext()
    torch.cuda.nvtx.range_push = torch.cuda.nvtx.range_pop = lambda *_: 0  # marks for a profiler
    torch.Tensor.pin_memory = lambda tensor, *_: tensor  # the driver locks the memory; its content is the same
    torch.Tensor.record_stream = lambda *_: None  # keeps memory until another stream is done with it
    # By itself the mode looks whether a GPU is there, and then tries operations on it.
    FakeTensorMode.avoid_device_init = True
    # A backward on the device's own thread would lose this thread's mode.
    torch.autograd.set_multithreading_enabled(False)
    # A compiler for the GPU would start Triton. Uncompiled, flex attention calls its operator with the same arguments.
    torch.compiler.set_stance("force_eager")
    flex_attention._FLEX_ATTENTION_DISABLE_COMPILE_DEBUG = True
    # `module.to("cuda")` gives a parameter other memory; optimizers know the parameter. A real one and a fake one have
    # no memory to give, so the two objects change places. PyTorch's own swap refuses fakes, which it knows elsewhere.
    torch.__future__.set_swap_module_params_on_conversion(True)
    torch.utils.swap_tensors = _swap
    dist.init_process_group = _join
    # The driver's handle of memory for other processes: of memory that is not there.
    reductions.reduce_tensor = lambda tensor: (None, (tensor.shape, tensor.device.index))


def _swap(one: Any, other: Any) -> None:
    one.__class__, other.__class__ = other.__class__, one.__class__
    one.__dict__, other.__dict__ = other.__dict__, one.__dict__
    torch._C._swap_tensor_impl(one, other)


def _join(backend: str, *, store: Any, **options: Any) -> None:
    """Join PyTorch's group for tests in place of NCCL's, which the CPU build lacks: it moves no bytes.

    Once per process: DeepSpeed keeps groups for good.
    """
    assert backend == "nccl", backend
    if not dist.is_initialized():
        _init_process_group("fake", store=FakeStore(), **options)


def _returns(value: Any) -> Callable[..., Any]:
    """Return a new function that returns `value`: the compiler's tables refuse one function under two names."""
    return lambda *_, **__: value


VALUES: dict[str, Any] = {
    # There is one device.
    "is_available": True,
    "is_bf16_supported": True,
    "device_count": 1,
    "current_device": 0,
    "set_device": None,
    "_lazy_init": None,  # would load the driver
    # Its facts, as of an H100: they choose the kernels.
    "get_device_name": PROPERTIES.name,
    "get_device_capability": (PROPERTIES.major, PROPERTIES.minor),
    "get_device_properties": PROPERTIES,
    "mem_get_info": (PROPERTIES.total_memory, PROPERTIES.total_memory),
    "memory_allocated": 0,
    "max_memory_allocated": 0,
    "memory_reserved": 0,
    "memory_stats": {},
    "empty_cache": None,
    "reset_peak_memory_stats": None,
    # Fakes have no numbers, and need no random ones.
    "manual_seed": None,
    "manual_seed_all": None,
    # Nothing runs, so nothing has to wait.
    "current_stream": Stream(),
    "default_stream": Stream(),
    "synchronize": None,
}
