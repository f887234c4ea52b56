"""What rlsys uses of torch on GPUs, in the build for CPUs.

The builds of torch 2.13.0 for CUDA and for CPUs have the same 2,414 Python files, but for the version's. So names and
signatures can be tested here; only what libraries define (`_CudaDeviceProperties`) stands in a stub.
"""

from __future__ import annotations

import ast
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.multiprocessing import reductions

from tests.contracts.rlsys_code import source_files

DEVICE = torch.device("cuda", 0)
# The functions of `torch.cuda`, each with the arguments that rlsys gives.
CALLS: dict[str, tuple[Any, ...]] = {
    "current_device": (),
    "current_stream": (),
    "device_count": (),
    "get_device_capability": (DEVICE,),
    "get_device_name": (DEVICE,),
    "get_device_properties": (0,),
    "is_available": (),
    "mem_get_info": (),
}


def test_what_rlsys_uses_of_torch_cuda_is_listed() -> None:
    used = {name for file in source_files() for name in file.members_of("torch.cuda")}
    assert used == CALLS.keys()


@pytest.mark.parametrize("name", CALLS)
def test_functions_take_these_arguments(name: str) -> None:
    inspect.signature(getattr(torch.cuda, name)).bind(*CALLS[name])


def test_a_stream_can_be_waited_for() -> None:
    inspect.signature(torch.cuda.Stream.synchronize).bind(None)


def test_memory_comes_as_free_and_total() -> None:
    assert inspect.signature(torch.cuda.mem_get_info).return_annotation in ("tuple[int, int]", tuple[int, int])


def test_devices_have_a_uuid() -> None:
    stub = ast.parse(Path(torch.__file__).with_name("_C").joinpath("__init__.pyi").read_text(encoding="utf-8"))
    [properties] = [node for node in stub.body if getattr(node, "name", None) == "_CudaDeviceProperties"]
    assert isinstance(properties, ast.ClassDef)
    assert "uuid: str" in [ast.unparse(statement) for statement in properties.body]


def test_the_handle_of_a_tensor_is_what_rebuilds_it_with_the_device_seventh() -> None:
    """The receiver puts its own number of the device at index 6 of the handle."""
    parameters = list(inspect.signature(reductions.rebuild_cuda_tensor).parameters)
    assert parameters[6] == "storage_device"
    # `reduce_tensor` returns the function and its arguments.
    function, handle = _returned_for_cuda(reductions.reduce_tensor)
    assert function == "rebuild_cuda_tensor"
    assert handle[6] == "device"
    assert len(handle) == len(parameters)


def _returned_for_cuda(function: Callable[..., Any]) -> tuple[str, list[str]]:
    """Return what a reduction returns for a tensor on a GPU, as text: no CPU can call it."""
    tree = ast.parse(inspect.getsource(function))
    pairs = [node.value.elts for node in ast.walk(tree) if isinstance(node, ast.Return) if _is_pair(node.value)]
    [(rebuild, arguments)] = [pair for pair in pairs if ast.unparse(pair[0]) == "rebuild_cuda_tensor"]
    assert isinstance(arguments, ast.Tuple)
    return ast.unparse(rebuild), [ast.unparse(argument) for argument in arguments.elts]


def _is_pair(value: ast.expr | None) -> bool:
    return isinstance(value, ast.Tuple) and len(value.elts) == 2
