"""A machine with one imaginary GPU: tensors on `cuda` have shapes and dtypes and no numbers, all others are real.

What leaves the GPU, as tensors or as Python numbers, is made up: zeros, True, and False where `any` was asked. So
numbers are finite, and none is found that is not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

aten = torch.ops.aten


class FakeGpu(TorchDispatchMode):
    """Runs operations on `cuda` as FakeTensorMode does, which refuses tensors on two devices as a GPU does."""

    supports_higher_order_operators = True  # flex attention is one

    def __init__(self) -> None:
        super().__init__()
        self._fakes = FakeTensorMode(allow_non_fake_inputs=True)
        self._any = WeakTensorKeyDictionary()  # results of `any`, which are False
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
        leaves = tree_leaves((args, kwargs))
        if not any(map(_is_on_gpu, leaves)):
            return func(*args, **kwargs)
        self.ran.add(func)
        if func in (aten._local_scalar_dense.default, aten.item.default):  # `float`, `bool`: the host waits
            return args[0] not in self._any and _made_up((), args[0].dtype).item()
        if func is aten.equal.default:
            return True
        is_real = not isinstance(next(iter(args), None), FakeTensor)
        with self._fakes:
            # The size of two results depends on numbers: here everything is chosen, and nothing beyond `minlength`.
            if func is aten.nonzero.default:
                return args[0].new_empty((args[0].numel(), args[0].dim()), dtype=torch.int64)
            if func is aten.bincount.default:
                return args[0].new_empty(args[2])
            if is_real and getattr(func, "overloadpacket", None) in (aten._to_copy, aten.to):  # `to` in inference mode
                return _uploaded(args[0], leaves)
            found = func(*args, **kwargs)
        if getattr(func, "overloadpacket", None) is aten.any:
            self._any[found] = True
        if func is aten.copy_.default and is_real:  # from the GPU into real memory
            return args[0].copy_(_made_up(args[0].shape, args[0].dtype))
        return tree_map(_arrived, found)


def _is_on_gpu(value: Any) -> bool:
    """Return whether an argument is a tensor on the GPU, or names it as the device of a new one."""
    if isinstance(value, torch.Tensor):
        return isinstance(value, FakeTensor)
    return isinstance(value, torch.device) and value.type == "cuda"


def _uploaded(real: torch.Tensor, options: Sequence[Any]) -> torch.Tensor:
    """Return a real tensor's copy on the GPU, by itself: FakeTensorMode would remember whose copy it is."""
    dtypes = [option for option in options if isinstance(option, torch.dtype)]
    return torch.empty_strided(real.shape, real.stride(), dtype=dtypes[0] if dtypes else real.dtype, device="cuda")


def _arrived(value: Any) -> Any:
    """Return a result; one that has left the GPU becomes real."""
    if isinstance(value, FakeTensor) and value.device.type == "cpu":
        return _made_up(value.shape, value.dtype)
    return value


def _made_up(shape: Any, dtype: torch.dtype) -> torch.Tensor:
    return torch.full(shape, dtype is torch.bool, dtype=dtype)
