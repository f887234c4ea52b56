"""The tests of this folder run in one process with an imaginary GPU; here each shows what became of it there.

Where GPU lines are counted, the ordinary tests that enter some run in a process that counts, and are shown here too.
"""

from __future__ import annotations

import fcntl
import json
import os
import pickle
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.fake_cuda.child import ON_GPU
from tests.fake_cuda.lines import ROOT, gpu_pieces
from tests.fake_cuda.recorder import ENTERED, PIECES, write_pieces
from tests.fake_cuda.shim import obstacle

FOLDER = Path(__file__).parent
LINES = FOLDER / "test_gpu_lines.py"  # runs in pytest's own process
# Unit tests that enter GPU lines without the imaginary GPU, with stand-ins for what is beyond them.
ORDINARY = sorted(
    file
    for pattern in (
        "weights/test_nccl*.py",
        "weights/test_ipc*.py",
        "weights/test_broadcaster.py",
        "rollout/engine/test_nccl*.py",
        "learner/test_policy_group.py",
        "learner/test_shared_gpu.py",
    )
    for file in (ROOT / "tests" / "unit").glob(pattern)
)
ALL_ON_GPU = ("--gpu", str(FOLDER.relative_to(ROOT)), f"--ignore={LINES.relative_to(ROOT)}")
ALL_ORDINARY = ("--plain", *(str(file.relative_to(ROOT)) for file in ORDINARY))


class FailedThereError(Exception):
    """A test failed in the process with the imaginary GPU."""


class Case(pytest.Item):
    """A test in pytest's own process: its outcome in the other one."""

    there: tuple[str, ...] = ()  # the arguments of that process

    def runtest(self) -> None:
        """Pass, skip or fail as the test did."""
        run = run_once(self.there, self.config)
        outcome, text = run.outcomes.get(self.nodeid, ("failed", run.output))
        if outcome == "skipped":
            pytest.skip(text)
        if outcome != "passed":
            raise FailedThereError(text)

    def repr_failure(self, excinfo: Any, style: Any = None) -> Any:
        """Return the failure as the other process reported it."""
        if isinstance(excinfo.value, FailedThereError):
            return str(excinfo.value)
        return super().repr_failure(excinfo, style)

    def reportinfo(self) -> tuple[Path, int | None, str]:
        """Return the test's place."""
        return self.path, None, self.name


@pytest.hookimpl(trylast=True)  # after tests were deselected
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put a Case in the place of every test that runs in another process."""
    if ON_GPU in os.environ:
        return
    here = [item for item in items if item.path.parent == FOLDER and item.path != LINES]
    # All of them where lines are counted; else those that were asked for.
    all_of_them = any(item.path == LINES for item in items)
    ordinary = [item for item in items if item.path in ORDINARY] if all_of_them else []
    on_gpu = ALL_ON_GPU if all_of_them else ("--gpu", *(item.nodeid for item in here))
    # They come last: by then the lines are counted, and another worker of pytest-xdist need not wait for it.
    items[:] = [item for item in items if item not in here and item not in ordinary]
    items += [*(_case(item, ALL_ORDINARY) for item in ordinary), *(_case(item, on_gpu) for item in here)]


def _case(item: pytest.Item, there: tuple[str, ...]) -> Case:
    case = Case.from_parent(item.parent, name=item.name)
    case.there = there
    return case


@dataclass(frozen=True)
class Run:
    """The tests of one process."""

    outcomes: dict[str, tuple[str, str]]  # outcome and explanation, by test
    entered: set[str]  # keys of pieces
    output: str


@cache
def run_once(arguments: tuple[str, ...], config: Any) -> Run:
    """Run tests in another process, once for all workers of pytest-xdist."""
    if "--gpu" in arguments and obstacle() is not None:
        pytest.skip(str(obstacle()))
    if not hasattr(config, "workerinput"):
        return run_child(*arguments)
    kept = Path(config._tmp_path_factory.getbasetemp()).parent / "fake_cuda.pickle"
    with kept.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        runs = pickle.loads(kept.read_bytes()) if kept.is_file() else {}
        if arguments not in runs:
            runs[arguments] = run_child(*arguments)
            kept.write_bytes(pickle.dumps(runs))
        found: Run = runs[arguments]
        return found


def run_child(*arguments: str) -> Run:
    """Run pytest in a process that records, with those it starts, which pieces are entered."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        results, pieces, entered = (folder / part for part in ("results.json", "pieces.json", "entered.txt"))
        write_pieces(gpu_pieces(), pieces)
        entered.touch()
        path = os.pathsep.join([str(FOLDER / "start"), str(ROOT), os.environ.get("PYTHONPATH", "")])
        done = subprocess.run(
            [sys.executable, "-m", "tests.fake_cuda.child", str(results), *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": path, PIECES: str(pieces), ENTERED: str(entered)},
            capture_output=True,
            text=True,
            check=False,
        )
        output = f"the process ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}"
        outcomes = json.loads(results.read_text()) if results.is_file() else {}  # it may have died
        return Run(outcomes, set(entered.read_text().splitlines()), output)


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny Qwen2: two heads of queries share one of keys and values."""
    return _saved(tmp_path_factory.mktemp("gqa"))


@pytest.fixture(scope="session")
def tiny_mha(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with as many heads of keys and values as of queries."""
    return _saved(tmp_path_factory.mktemp("mha"), num_kv_heads=2)


def _saved(folder: Path, **options: Any) -> Path:
    from rlsys.config.build_schema import ModelBuild, TokenizerBuild
    from rlsys.models.tiny import build_model, build_tokenizer, save_model
    from tests.unit.conftest import TINY

    tokenizer = build_tokenizer(TokenizerBuild())
    save_model(build_model(ModelBuild(**{**TINY, **options}), tokenizer, seed=0), tokenizer, folder)
    return folder
