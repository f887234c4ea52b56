"""Imported at the start of every interpreter that has this folder in PYTHONPATH: `torch.cpu` knows AVX2 only.

vLLM chooses its kernels, and rlsys its matrix products, by what these functions of PyTorch say.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import importlib.util
import sys
from collections.abc import Sequence
from types import ModuleType

NEWER = ("avx512", "avx512_bf16", "vnni", "amx_tile", "amx_fp16")


class _Loader(importlib.abc.Loader):
    """The loader of `torch.cpu`, with the answers of an older processor."""

    def __init__(self, real: importlib.abc.Loader) -> None:
        self._real = real

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType | None:
        return self._real.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._real.exec_module(module)
        for name in NEWER:
            setattr(module, f"_is_{name}_supported", lambda: False)


class _Finder(importlib.abc.MetaPathFinder):
    """Finds `torch.cpu` once."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if fullname != "torch.cpu":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Loader(spec.loader)
        return spec


sys.meta_path.insert(0, _Finder())
