"""The library that gives PyTorch's CPU build an imaginary CUDA device: built once, kept in the cache."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

SOURCE = Path(__file__).with_name("shim.cpp")
CACHE = Path("~/.cache/rlsys/fake_cuda").expanduser()  # beside the models that are built on the spot
FLAGS = ("-O1", "-std=c++20", "-shared", "-fPIC")


def obstacle() -> str | None:
    """Return why there can be no imaginary GPU here, or None."""
    if (_torch() / "lib" / "libtorch_cuda.so").exists():
        return "this torch is built for CUDA, and has real devices"
    return None if shutil.which(_compiler()) else f"no C++ compiler {_compiler()} to build {SOURCE.name}"


def build_shim() -> Path:
    """Return the built library. torch is not imported: the library must be loaded before it."""
    version = importlib.metadata.version("torch")
    digest = hashlib.sha256(SOURCE.read_bytes() + " ".join(FLAGS).encode()).hexdigest()[:12]
    library = CACHE / f"torch-{version}-{digest}.so"
    if not library.exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        # Built beside it and renamed: another process sees a whole library or none.
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:
            _compile(Path(folder) / library.name)
            os.replace(Path(folder) / library.name, library)
    return library


def _compile(target: Path) -> None:
    include, libraries = _torch() / "include", _torch() / "lib"
    command = [
        *(_compiler(), *FLAGS, str(SOURCE), "-o", str(target)),
        *(f"-I{include}", f"-I{include / 'torch/csrc/api/include'}"),
        *(f"-L{libraries}", "-lc10", "-ltorch_cpu", f"-Wl,-rpath,{libraries}"),
    ]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    if found.returncode != 0:
        raise RuntimeError(f"{SOURCE.name} could not be built by {command[0]}:\n{found.stderr}")


def _compiler() -> str:
    return os.environ.get("CXX", "g++")


def _torch() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent
