"""Memory of a whole run on CPUs as `rlsys doctor` predicts it and as it was: three sizes of model, ZeRO stages 0 to 3.

python -m benchmarks.run_memory [--sizes small medium large] [--stages 0 1 2 3] [--write]

Each case is a real run of two steps with an engine, two learner ranks, a reference worker and a scoring worker. Every
0.1 s, or less often on a busy machine, the memory of all its processes is read from /proc/PID/smaps_rollup: `Pss_Anon`
and `Pss_Shmem`, in which pages that several processes share are divided among them. Of a forked worker only the pages
of its own count, and of its server all: `Private_Dirty` and `Anonymous`. Pages of files (libraries, a mapped
checkpoint) are left out, as the kernel drops them when memory is short. A role's figure is the largest sum over its
processes at any moment; the node's is the largest sum over all processes, with shared pages divided. Watching ends with
the first worker that computes: those that still live would inherit the pages that they shared with it, and seem to
grow. A prediction is good within 15% or 200 MB, whichever is more.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import psutil

from benchmarks import report
from benchmarks.side import end_on_sigterm
from benchmarks.workload import side_env

PERIOD_S = 0.1
LISTED_S = 1.0  # between two looks for new processes, and at those that only wait
LIMIT_S = 900.0
SIZES = {  # of a Qwen2 with a vocabulary of 8,192 tokens
    "small": {"hidden_size": 256, "num_hidden_layers": 4, "intermediate_size": 768, "num_attention_heads": 4},
    "medium": {"hidden_size": 384, "num_hidden_layers": 6, "intermediate_size": 1536, "num_attention_heads": 6},
    "large": {"hidden_size": 512, "num_hidden_layers": 8, "intermediate_size": 2048, "num_attention_heads": 8},
}
# How a role's processes name themselves.
NAMES = {
    "ray::RolloutWorker": "rollout",
    "ray::PolicyRank": "learner",
    "ray::ReferenceWorker": "reference",
    "ray::ScoringWorker": "scoring",
    "rlsys.scoring": "scoring",
    "fork_server.py serve": "imports",
}
SHARED = "shared memory"
COMPUTE = ("rollout", "learner", "reference")
SHARE, LEAST_MB = 0.15, 200.0  # by which a prediction may be wrong: the larger of both


class _Sizes(NamedTuple):
    """Bytes of one process: of anonymous memory its share, what nobody shares, and all; its share of shared memory."""

    share: int
    private: int
    whole: int
    shared_memory: int

    def of(self, role: str) -> int:
        """Return what counts as a role's: forked workers have their own pages, their servers those that are shared."""
        return self.private if role in COMPUTE else self.whole if role == "imports" else self.share


class Watch:
    """The memory of a process and all its descendants, by role."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._roles = {pid: "driver"}
        self._known = {pid: self._root}
        self._listed_at = 0.0
        self._now: dict[int, _Sizes] = {}
        self._samples: list[dict[int, _Sizes]] = []
        self._is_over = False

    def sample(self) -> None:
        """Read the processes that compute, and now and then all of them; nothing once one that computes has ended."""
        if self._is_over:
            return
        is_listed = time.monotonic() > self._listed_at + LISTED_S
        if is_listed:
            self._list()
        for pid in self._known:
            if is_listed or self._roles.get(pid) in COMPUTE:
                self._now.pop(pid, None)
                with contextlib.suppress(OSError):  # it has ended
                    self._now[pid] = _sizes(pid)
        self._is_over = any(self._has_ended(pid) for pid, role in self._roles.items() if role in COMPUTE)
        if self._is_over:
            return
        self._samples.append(dict(self._now))

    def peaks(self) -> dict[str, float]:
        """Return the largest sum of every role and of the node, in MB."""
        found: Counter[str] = Counter()
        for sample in self._samples:
            now: Counter[str] = Counter()
            for pid, sizes in sample.items():
                role = self._roles.get(pid, "ray")
                now[role] += sizes.of(role)
                now[SHARED] += sizes.shared_memory
                now["node"] += sizes.share + sizes.shared_memory
            found |= now  # the larger of each
        return {role: round(size / 1e6, 1) for role, size in sorted(found.items())}

    def _has_ended(self, pid: int) -> bool:
        """Return whether a process has begun to end: its memory goes first, and it is there for a while without any."""
        try:
            return pid not in self._known or self._known[pid].memory_info().vms == 0
        except psutil.NoSuchProcess:
            return True

    def _list(self) -> None:
        """Find all processes and their roles."""
        self._listed_at = time.monotonic()
        with contextlib.suppress(psutil.Error):
            # Workers whose fork server has ended are no descendants any more: they are known from before.
            found = {process.pid: process for process in self._root.children(recursive=True)}
            self._known = {pid: process for pid, process in (self._known | found).items() if process.is_running()}
        for process in self._known.values():
            self._name(process)
        self._now = {pid: sizes for pid, sizes in self._now.items() if pid in self._known}

    def _name(self, process: psutil.Process) -> None:
        with contextlib.suppress(psutil.Error):
            command = " ".join(process.cmdline())
            for text, role in NAMES.items():
                # A worker is forked from a server, and takes its name when it starts its role.
                if text in command and self._roles.get(process.pid, "imports") == "imports":
                    self._roles[process.pid] = role


def _sizes(pid: int) -> _Sizes:
    found = {}
    for line in Path(f"/proc/{pid}/smaps_rollup").read_text(encoding="utf-8").splitlines()[1:]:
        key, _, value = line.partition(":")
        found[key] = 1024 * int(value.split()[0])
    return _Sizes(found["Pss_Anon"], found["Private_Dirty"], found["Anonymous"], found["Pss_Shmem"])


def build(folder: Path, size: str) -> int:
    """Save a model and a file of prompts; return its number of parameters."""
    from transformers import Qwen2Config, Qwen2ForCausalLM

    from rlsys.config.build_schema import TokenizerBuild
    from rlsys.models.tiny import build_tokenizer, save_model

    tokenizer = build_tokenizer(TokenizerBuild())
    heads = {"num_key_value_heads": SIZES[size]["num_attention_heads"], "tie_word_embeddings": True}
    ids = {"bos_token_id": None, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    shape = {"vocab_size": 8192, "max_position_embeddings": 1024}
    model = Qwen2ForCausalLM(Qwen2Config(**SIZES[size], **heads, **ids, **shape))
    save_model(model, tokenizer, folder / size)
    rows = [{"prompt": f"{number:04d} " + "abcdefgh" * 6, "answer": "no"} for number in range(64)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return int(model.num_parameters())


def overrides(folder: Path, size: str, stage: int) -> list[str]:
    """Return a run that fills its largest microbatch and the engine's cache."""
    return [
        "reward=target_length",
        f"model.path={folder / size}",
        f"data.train={folder / 'prompts.jsonl'}",
        "data.eval=null",
        *("train.num_steps=2", "train.prompts_per_step=4", "train.samples_per_prompt=24"),
        *("rollout.max_response_tokens=64", "rollout.ignore_eos=true", "rollout.kv_cache_gib=0.25"),
        *(
            "learner.num_workers=2",
            f"learner.zero_stage={stage}",
            "learner.microbatch_tokens=1600",
            "reference.microbatch_tokens=1600",
        ),
        *(
            "learner.dtype=float32",
            "algorithm.kl.coef=0.001",
            "checkpoint.last=false",
            "checkpoint.every_s=0",
            "logging.trackers=[]",
        ),
    ]


def measure(given: list[str], folder: Path) -> dict[str, float]:
    """Train, and return the peaks."""
    command = [sys.executable, "-m", "rlsys.cli", "train", *given, f"run_dir={folder / 'run'}"]
    with (folder / "run.log").open("w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=subprocess.STDOUT, env=side_env(folder))
        watch, end = Watch(process.pid), time.monotonic() + LIMIT_S
        try:
            while process.poll() is None and time.monotonic() < end:
                started = time.monotonic()
                watch.sample()
                time.sleep(max(PERIOD_S, 3 * (time.monotonic() - started)))  # the run needs the cores
        finally:
            process.terminate()
            process.wait()
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{(folder / 'run.log').read_text()[-3000:]}")
    return watch.peaks()


def predict(given: list[str]) -> dict[str, float]:
    """Return what doctor predicts of the run, in MB."""
    from rlsys.build.memory import run_memory
    from rlsys.config.compose import load_config
    from rlsys.preflight.prepare import prepare

    found = run_memory(prepare(load_config(given)))
    roles = {role.name: round(role.total / 1e6, 1) for role in found.roles}
    return {**roles, "node": round(found.total / 1e6, 1)}


def is_within(predicted: float, measured: float) -> bool:
    """Return whether a prediction in MB is good enough."""
    return abs(predicted - measured) <= max(SHARE * measured, LEAST_MB)


def main() -> None:
    """Measure every size and stage, and show what was predicted."""
    end_on_sigterm()
    parser = argparse.ArgumentParser("python -m benchmarks.run_memory", description=__doc__)
    parser.add_argument("--sizes", nargs="+", choices=SIZES, default=list(SIZES))
    parser.add_argument("--stages", nargs="+", type=int, choices=range(4), default=list(range(4)))
    parser.add_argument("--write", action="store_true", help="write benchmarks/results/run_memory.json")
    options = parser.parse_args()
    header = report.header("benchmarks.run_memory")
    columns = ["model", "ZeRO", "role", "measured MB", "predicted MB", "difference", "within"]
    rows, shown = [], report.table("memory of a run", columns)
    for size in options.sizes:
        for stage in options.stages:
            with tempfile.TemporaryDirectory(prefix="rlsys-bench-") as place:
                folder = Path(place)
                parameters = build(folder, size)
                given = overrides(folder, size, stage)
                measured, predicted = measure(given, folder), predict(given)
            outside = [role for role, said in predicted.items() if not is_within(said, measured[role])]
            found = {"measured_mb": measured, "predicted_mb": predicted, "outside": outside}
            rows.append({"size": size, "parameters": parameters, "zero_stage": stage, **found})
            for role, said in predicted.items():
                was = measured[role]
                cells = [report.number(was, 0), report.number(said, 0), f"{100 * (said / was - 1):+.0f}%"]
                shown.add_row(size, str(stage), role, *cells, "no" if role in outside else "yes")
            print(rows[-1], flush=True)
    report.show(shown)
    if options.write:
        print(f"written: {report.write('run_memory', {**header, 'cases': rows})}")


if __name__ == "__main__":
    main()
