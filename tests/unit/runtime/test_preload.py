"""What an engine's process is started with."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rlsys.build import environment
from rlsys.build.placement import worker_demands
from rlsys.config.compose import load_config
from rlsys.runtime.preload import KMP, REGISTERED, engine_preload, remove_registrations


def test_what_is_installed_is_preloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LD_PRELOAD", raising=False)
    system = tmp_path / "system"
    assert engine_preload(str(tmp_path), [str(system)]) == {}
    openmp, tcmalloc = tmp_path / "lib" / "libiomp5.so", system / "libtcmalloc_minimal.so.4"
    for path in (openmp, tcmalloc):
        path.parent.mkdir()
    openmp.touch()
    assert engine_preload(str(tmp_path), [str(system)]) == KMP | {"LD_PRELOAD": str(openmp)}
    tcmalloc.touch()
    assert engine_preload(str(tmp_path), [str(system)])["LD_PRELOAD"] == f"{tcmalloc}:{openmp}"
    monkeypatch.setenv("LD_PRELOAD", "mine.so")
    assert engine_preload(str(tmp_path), [str(system)])["LD_PRELOAD"] == f"mine.so:{tcmalloc}:{openmp}"


def test_what_openmp_leaves_in_shared_memory_is_removed(tmp_path: Path) -> None:
    mine = os.getuid()
    with subprocess.Popen(["sleep", "60"]) as child:
        gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
        removed = [f"{pid}_{mine}" for pid in (os.getpid(), child.pid, int(gone.stdout))]
        kept = [f"{os.getppid()}_{mine}", f"{os.getpid()}_{mine + 1}", f"x_{mine}"]
        for name in removed + kept:
            (tmp_path / f"{REGISTERED}_{name}").touch()
        remove_registrations(tmp_path)
        child.kill()
    assert {file.name.removeprefix(f"{REGISTERED}_") for file in tmp_path.iterdir()} == set(kept)


def test_freed_memory_is_kept_as_far_as_the_library_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Older ones refuse more than 32 MiB, and would keep nothing at all."""
    monkeypatch.delenv("GLIBC_TUNABLES", raising=False)
    assert environment.keep_freed_memory("") == {}
    for version, threshold in {"2.31": 2**25, "2.34": 2**25, "2.35": 2**32, "2.36": 2**32, "3.0": 2**32}.items():
        tunables = environment.keep_freed_memory(version)["GLIBC_TUNABLES"].split(":")
        assert f"glibc.malloc.mmap_threshold={threshold}" in tunables
    monkeypatch.setenv("GLIBC_TUNABLES", "glibc.malloc.check=3")
    assert environment.keep_freed_memory("2.36")["GLIBC_TUNABLES"].endswith(":glibc.malloc.check=3")


def test_only_engines_on_cpus_and_only_when_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "engine_preload", lambda: {"LD_PRELOAD": "x.so"})
    wanted = worker_demands(load_config([]))
    assert wanted["rollout"][0].env["LD_PRELOAD"] == "x.so"
    assert "LD_PRELOAD" not in wanted["learner"][0].env
    for overrides in (["rollout.preload=false"], ["cluster.num_gpus=2"]):
        assert "LD_PRELOAD" not in worker_demands(load_config(overrides))["rollout"][0].env
