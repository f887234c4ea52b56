"""The sockets that the processes of a real run listen on, against the plan that `rlsys doctor` shows."""

from __future__ import annotations

import contextlib
import fnmatch
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rlsys.build.placement import worker_demands
from rlsys.build.sockets import EVERY, LOOPBACK, NODE, planned_sockets
from rlsys.config.compose import load_config
from tests.integration.runs import SMALL

# What a process's command contains, and a word of the owners under which its sockets are planned.
OWNERS = {
    "gcs_server": "gcs_server",
    "raylet/raylet": "raylet",
    "DashboardAgent": "agents",
    "RuntimeEnvAgent": "agents",
    "fork_server.py serve": "fork servers",
    "PolicyRank": "learner",
    "RolloutWorker": "engines",
}
Seen = tuple[str, str, str]  # the owner's word, kind, and class of the address or file


def place(address: str) -> str:
    address = address.removeprefix("::ffff:")
    if address in ("0.0.0.0", "::"):
        return EVERY
    return LOOPBACK if address.startswith("127.") or address == "::1" else NODE


def listening(process: psutil.Process) -> set[Seen]:
    command = " ".join(process.cmdline())
    owner = next((word for text, word in OWNERS.items() if text in command), "workers")
    found = {
        (owner, "tcp", place(one.laddr.ip))
        for one in process.net_connections("tcp")
        if one.status == psutil.CONN_LISTEN
    }
    with open("/proc/net/unix", encoding="utf-8") as file:
        accepting = {line.split()[7] for line in file if len(line.split()) > 7 and line.split()[3] == "00010000"}
    named = {one.laddr for one in process.net_connections("unix") if isinstance(one.laddr, str)}
    return found | {(owner, "unix", name) for name in named & accepting}


def watch(command: list[str], folder: Path) -> set[Seen]:
    """Run a command, and return what its descendants listened on at any time."""
    seen: set[Seen] = set()
    known: dict[int, psutil.Process] = {}
    with (folder / "log").open("w") as log:
        started = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, cwd=folder)
        root = psutil.Process(started.pid)
        while started.poll() is None:
            with contextlib.suppress(psutil.Error):
                known |= {process.pid: process for process in [root, *root.children(recursive=True)]}
            for process in known.values():  # workers outlive the servers that they were forked from
                with contextlib.suppress(psutil.Error):
                    seen |= listening(process)
            time.sleep(0.2)
    assert started.returncode == 0, (folder / "log").read_text()[-3000:]
    return seen


@pytest.mark.long
def test_a_run_listens_where_the_plan_says_and_nowhere_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    given = [*SMALL, "learner.num_workers=2", f"model.cache_dir={tmp_path}/models", f"run_dir={tmp_path}/run"]
    config = load_config(given)
    planned = planned_sockets(config, worker_demands(config))
    seen = watch([sys.executable, "-m", "rlsys.cli", "train", *given], tmp_path)
    unplanned, used = [], set()
    for owner, kind, address in sorted(seen):
        fits = [
            one
            for one in planned
            if one.kind == kind
            and (owner in one.owner or "workers" in one.owner)
            and fnmatch.fnmatch(address, one.address)
        ]
        used |= set(fits)
        unplanned += [] if fits else [(owner, kind, address)]
    assert unplanned == []
    assert set(planned) - used == set()
