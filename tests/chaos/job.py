"""A small real run as a process of its own, seen from outside: its steps, its processes, and what it leaves behind."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import uuid
from collections import Counter
from pathlib import Path
from typing import Any

import psutil

TAG = "RLSYS_CHAOS"  # in the environment of every process of the run
# How a role's processes name themselves.
ROLES = {
    "ray::RolloutWorker": "rollout",
    "ray::PolicyRank": "learner",
    "ray::ReferenceWorker": "reference",
    "ray::ScoringWorker": "scoring",
    "rlsys.scoring.process": "reward",
    "gcs/gcs_server": "gcs_server",
    "raylet/raylet": "raylet",
}
FORKED, SERVER = ("rollout", "learner", "reference"), "fork_server.py"
PROMPTS_PER_STEP, SAMPLES = 4, 8
NUM_PROMPTS = 40_000  # more than a run takes: every prompt comes once
REWARD = '''"""Closeness of the response's length to three characters; it hangs once for every file beside it."""

import pathlib
import time

HANG = pathlib.Path(__file__).with_name("hang")


def score(completions, **_):
    try:
        HANG.rename(HANG.with_name("hung"))
    except FileNotFoundError:
        return [-abs(3.0 - len(text)) for text in completions]
    while True:  # it holds the GIL, as native code does
        sum(range(10**9))
'''
OPTIONS = (
    "experiment=quickstart",
    "model.build.warmup.max_steps=0",
    "model.build.num_layers=2",
    "data.train=prompts.jsonl",
    "data.eval=null",
    "eval.every=0",
    "rewards=[{name:'reward.py:score'}]",
    f"train.prompts_per_step={PROMPTS_PER_STEP}",
    f"train.samples_per_prompt={SAMPLES}",
    "train.updates_per_step=1",
    "train.max_staleness=1",
    "learner.lr=3e-4",
    "learner.lr_schedule=constant",
    "algorithm.kl.coef=0.001",
    "checkpoint.every=4",
    "checkpoint.keep=2",
    "logging.trackers=[]",
    "cluster.max_restarts=1000",
    "cluster.startup_deadline_s=400",
    # The longest that a step's parts take here is a second; a busy machine is several times slower.
    "learner.deadline_s=45",
    "reference.deadline_s=30",
    "weights.deadline_s=40",
    "scoring.function_deadline_s=5",
    "scoring.row_deadline_s=2",
    "scoring.deadline_s=120",
)


class Job:
    """`rlsys train` in a folder of its own, started again after it ended, also with other numbers of workers."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.run_dir = folder, folder / "run"
        self.tag = uuid.uuid4().hex
        self.workers = {"rollout": 2, "scoring": 1, "reference": 1, "learner": 2}
        self._process: subprocess.Popen[bytes] | None = None
        self._known: dict[int, tuple[float, str | None]] = {}  # start and role of processes, by process id
        self.ray_folder = Path(tempfile.mkdtemp(prefix="rlc-"))  # short: sockets are in it
        rows = (json.dumps({"prompt": f"{number:05d}+"}) + "\n" for number in range(NUM_PROMPTS))
        (folder / "prompts.jsonl").write_text("".join(rows))
        (folder / "reward.py").write_text(REWARD)

    def start(self, *more: str) -> None:
        """Start or resume the run."""
        given = [f"{role}.num_workers={count}" for role, count in self.workers.items()]
        given += [f"run_dir={self.run_dir}", f"model.cache_dir={self.folder}/models", "resume=auto", *more]
        env = {**os.environ, TAG: self.tag, "RAY_TMPDIR": str(self.ray_folder), "OMP_NUM_THREADS": "1"}
        with (self.folder / "log").open("ab") as log:
            command = [sys.executable, "-m", "rlsys.cli", "train", *OPTIONS, *given]
            self._process = subprocess.Popen(
                command, cwd=self.folder, env=env, stdout=log, stderr=log, preexec_fn=_heed_signals
            )

    @property
    def pid(self) -> int:
        """The run's own process, the driver."""
        assert self._process is not None
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """How the run's process ended; None while it runs."""
        assert self._process is not None
        return self._process.poll()

    def wait(self, deadline_s: float) -> int:
        """Wait for the end of the run's process."""
        assert self._process is not None
        return self._process.wait(deadline_s)

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the run's own process."""
        assert self._process is not None
        self._process.send_signal(number)

    def lines(self) -> list[str]:
        """Return the lines of metrics.jsonl, one per step."""
        with contextlib.suppress(FileNotFoundError):
            return (self.run_dir / "metrics.jsonl").read_text().split("\n")[:-1]  # the last may be half a line
        return []

    def last_row(self) -> dict[str, Any]:
        """Return the metrics of the newest step; nothing while a resume writes the file anew."""
        found: dict[str, Any] = json.loads((self.lines() or ["{}"])[-1])
        return found

    def log(self, last: int = 4000) -> str:
        """Return the end of what the run printed besides its steps, the newest step, and the end of workers' logs."""
        lines = (self.folder / "log").read_text(errors="replace").splitlines()
        said = [line for line in lines if not line.startswith("step ")]
        steps = [line for line in lines if line.startswith("step ")][-1:]
        logs = [
            f"{file}:\n{file.read_text(errors='replace')[-500:]}" for file in (self.run_dir / "logs").glob("*-*.log")
        ]
        return "\n".join(["\n".join(said)[-last:], *steps, *logs])

    def processes(self) -> dict[int, str | None]:
        """Return the role of every process of the run, None for others than `ROLES`; zombies are left out."""
        found = {}
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                if process.status() == psutil.STATUS_ZOMBIE:
                    continue
                started, role = self._known.get(process.pid, (0.0, None))
                if started != process.create_time():
                    # A long title is written over the environment: then the parent tells whose it is.
                    if process.environ().get(TAG) != self.tag and process.ppid() not in self._known:
                        continue
                    started = process.create_time()
                # Looked at again each time: workers take their names some time after their start, and a process that a
                # worker starts has the worker's name until it has become what it is.
                command = " ".join(process.cmdline())
                role = next((role for text, role in ROLES.items() if text in command), role)
                self._known[process.pid] = (started, role)
                found[process.pid] = role
        return found

    def victims(self, role: str) -> list[int]:
        """Return the processes of a role, oldest first."""
        return sorted((pid for pid, found in self.processes().items() if found == role), key=self._age)

    def is_complete(self) -> bool:
        """Return whether all workers are there, and none is stopped."""
        found = self.processes()
        counts = Counter(role for pid, role in found.items() if role and not _is_stopped(pid))
        wanted = {**self.workers, "reward": self.workers["scoring"], "gcs_server": 1, "raylet": 1}
        return counts == wanted

    def importing(self) -> list[str]:
        """Return the roles of workers that are no forks of a server that has imported their libraries."""
        return [
            role
            for pid, role in self.processes().items()
            if role in FORKED and SERVER not in self._parents_command(pid)
        ]

    def command(self, pid: int) -> list[str]:
        """Return what a process was started as; nothing when it is gone."""
        with contextlib.suppress(psutil.Error):
            return psutil.Process(pid).cmdline()
        return []

    def end(self) -> None:
        """Kill whatever is left of the run."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if self._process is not None:
            self._process.wait()

    def close(self) -> None:
        """Kill whatever is left of the run, and remove Ray's files."""
        self.end()
        shutil.rmtree(self.ray_folder, ignore_errors=True)

    def _age(self, pid: int) -> float:
        return self._known[pid][0]

    def _parents_command(self, pid: int) -> str:
        with contextlib.suppress(psutil.Error):
            return " ".join(self.command(psutil.Process(pid).ppid()))
        return ""


def _is_stopped(pid: int) -> bool:
    with contextlib.suppress(psutil.Error):
        return psutil.Process(pid).status() == psutil.STATUS_STOPPED
    return True


def _heed_signals() -> None:
    """Undo what `nohup` and `&` leave behind, also to children: Ctrl-C and a lost terminal are ignored."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
