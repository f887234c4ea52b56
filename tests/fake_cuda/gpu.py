"""A machine with one imaginary GPU: tensors on `cuda` have shapes and dtypes and no numbers, all others are real.

What leaves the GPU, as tensors or as Python numbers, is made up: zeros, and True.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten


class FakeGpu(TorchDispatchMode):
    """Runs operations on `cuda` as FakeTensorMode does, which refuses tensors on two devices as a GPU does."""

    supports_higher_order_operators = True  # flex attention is one

    def __init__(self) -> None:
        super().__init__()
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self.ran: set[Any] = set()  # operations on the GPU

    def __enter__(self) -> FakeGpu:
        # `torch.tensor(values, device="cuda")` makes a real tensor first and moves it where this mode sees it.
        self._lifting = torch._C._only_lift_cpu_tensors()
        torch._C._set_only_lift_cpu_tensors(True)
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        torch._C._set_only_lift_cpu_tensors(self._lifting)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if not any(map(_is_on_gpu, tree_leaves((args, kwargs)))):
            return func(*args, **kwargs)
        self.ran.add(func)
        if func is aten._local_scalar_dense.default:  # `item`, `float`, `bool`: the host waits for a number
            return _made_up((), args[0].dtype).item()
        if func is aten.equal.default:
            return True
        is_real = not isinstance(next(iter(args), None), FakeTensor)
        with self._fakes:
            if func is aten.nonzero.default:  # everything is chosen
                return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
            if func is aten._to_copy.default and is_real:
                return _uploaded(args[0], **kwargs)
            found = func(*args, **kwargs)
        if func is aten.copy_.default and is_real:  # from the GPU into real memory
            return args[0].copy_(_made_up(args[0].shape, args[0].dtype))
        return tree_map(_arrived, found)


def _is_on_gpu(value: Any) -> bool:
    """Return whether an argument is a tensor on the GPU, or names it as the device of a new one."""
    if isinstance(value, torch.Tensor):
        return isinstance(value, FakeTensor)
    return isinstance(value, torch.device) and value.type == "cuda"


def _uploaded(real: torch.Tensor, *, dtype: Any = None, device: Any = None, **_: Any) -> torch.Tensor:
    """Return a real tensor's copy on the GPU, by itself: FakeTensorMode would remember whose copy it is."""
    return torch.empty_strided(real.shape, real.stride(), dtype=dtype or real.dtype, device=device)


def _arrived(value: Any) -> Any:
    """Return a result; one that has left the GPU becomes real."""
    if isinstance(value, FakeTensor) and value.device.type == "cpu":
        return _made_up(value.shape, value.dtype)
    return value


def _made_up(shape: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, dtype is torch.bool, dtype=dtype)
