"""Every command and script of the documentation is run, page by page, or says in its fence why not.

A page's blocks run in order in one folder, where all of its files are written first. `long` blocks run with `-m long`,
in a folder of their own, and every training is cut to two steps of a policy without warm-up.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.docs.pages import FAILS, OUTPUT, ROOT, Block, Page, written_pages
from tests.run_folder import Recipe, write_run

SHORT = ("train.num_steps=2", "model.build.warmup.max_steps=0", "data.eval_limit=8")
ALLOWED_S = 120
LONG_S = 900
LANGUAGES = ("bash", "python")


def shim(folder: Path, extra: tuple[str, ...] = ()) -> dict[str, str]:
    """An environment in which `rlsys` and `python` are this checkout's; `extra` goes behind `rlsys train ...`."""
    folder.mkdir()
    tool = folder / "rlsys"
    more = " ".join(f"'{override}'" for override in extra)
    python = f"'{sys.executable}' -m rlsys.cli"
    tool.write_text(
        f'#!/usr/bin/env bash\nif [ "$1" = train ]; then exec {python} "$@" {more}; fi\nexec {python} "$@"\n'
    )
    tool.chmod(0o755)
    (folder / "python").symlink_to(sys.executable)
    return {
        **{name: value for name, value in os.environ.items() if name != "RLSYS_RUNS"},
        "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "HF_HUB_OFFLINE": "1",
        "COLUMNS": "160",
    }


def write_files(page: Page, folder: Path) -> None:
    """Write every block of a page that is a file."""
    for block in page.blocks:
        if block.file is not None:
            (folder / block.file).write_text(block.text, encoding="utf-8")


def run_block(block: Block, folder: Path, env: dict[str, str], limit_s: int) -> str:
    """Run a block and return what it prints; of a file with data, nothing."""
    if block.language not in LANGUAGES:
        return ""
    command = ["bash", "-euo", "pipefail", "-c", block.text]
    if block.language == "python":
        command = [str(sys.executable), *([block.file] if block.file else ["-c", block.text])]
    process = subprocess.Popen(
        command,
        cwd=folder,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        printed, _ = process.communicate(timeout=limit_s)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGTERM)  # what the block started too
        pytest.fail(f"{block.where} did not end within {limit_s} s:\n{process.communicate()[0][-4000:]}")
    assert (process.returncode != 0) == (FAILS in block.words), (
        f"{block.where} ended with {process.returncode}:\n{printed[-4000:]}"
    )
    return printed


def check_output(block: Block, printed: str) -> None:
    """Every line of an output block was printed, in order; `...` stands for any number of lines."""
    rest = [line.rstrip() for line in printed.splitlines()]
    for line in (line.rstrip() for line in block.text.splitlines()):
        if line == "...":
            continue
        assert line in rest, f"{block.where}: not printed: {line!r}; what was printed:\n{printed[-3000:]}"
        rest = rest[rest.index(line) + 1 :]


def runs_at_once(block: Block) -> bool:
    return block.marker is None and (block.language in LANGUAGES or block.file is not None)


QUICK = [page for page in written_pages() if any(map(runs_at_once, page.blocks))]
LONG = [page for page in written_pages() if any(block.marker == "long" for block in page.blocks)]


@pytest.mark.parametrize("page", QUICK, ids=lambda page: page.name)
def test_the_commands_of_a_page_run(page: Page, tmp_path: Path) -> None:
    env = shim(tmp_path / "bin")
    folder = tmp_path / "work"
    folder.mkdir()
    (folder / ".venv").mkdir()
    (folder / ".venv" / "bin").symlink_to(tmp_path / "bin")
    for name, seed in (("mine", 0), ("first", 0), ("one", 1), ("two", 2)):
        write_run(folder / "runs" / name, Recipe(seed=seed))
    write_files(page, folder)
    printed = ""
    for block in page.blocks:
        if runs_at_once(block):
            printed = run_block(block, folder, env, ALLOWED_S)
        elif OUTPUT in block.words:
            check_output(block, printed)


@pytest.mark.long
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("page", LONG, ids=lambda page: page.name)
def test_the_long_commands_of_a_page_run(page: Page, tmp_path: Path) -> None:
    env = shim(tmp_path / "bin", SHORT)
    folder = tmp_path / "work"
    folder.mkdir()
    write_files(page, folder)
    for block in page.blocks:
        if block.marker == "long":
            run_block(block, folder, env, LONG_S)
    check_metrics(folder)


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_the_first_run_of_the_readme_on_the_cpu(tmp_path: Path) -> None:
    """The GPU command of README.md with a tiny model in place of the hub's, without GPUs."""
    small = ("cluster.num_gpus=0", "model.path=tiny", "learner.dtype=float32", "train.prompts_per_step=4")
    more = ("rollout.max_response_tokens=16", "rollout.kv_cache_gib=0.25", "eval.every=0", "learner.num_workers=1")
    env = shim(tmp_path / "bin", (*SHORT, *small, *more))
    folder = tmp_path / "work"
    folder.mkdir()
    subprocess.run(["rlsys", "make-model", "tiny"], cwd=folder, env=env, check=True, timeout=ALLOWED_S)
    (folder / ".venv" / "bin").mkdir(parents=True)
    (folder / ".venv" / "bin" / "activate").touch()  # the test's own environment is active already
    write_files(Page("README.md"), folder)
    for block in Page("README.md").blocks:
        if block.marker == "gpu":
            run_block(block, folder, env, LONG_S)
    check_metrics(folder)


def documented() -> list[re.Pattern[str]]:
    """Patterns of the metric keys in the tables of docs/metrics.md; `<word>` stands for one part of a key."""
    rows = [line for line in Page("docs/metrics.md").text.splitlines() if line.startswith("| `")]
    keys = [key for row in rows for key in re.findall(r"`([^`]+)`", row.split("|")[1])]
    return [re.compile(re.sub(r"<\w+>", "[^/]+", re.sub(r"([.+()])", r"\\\1", key))) for key in keys]


def check_metrics(folder: Path) -> None:
    """Every key of every `metrics.jsonl` below `folder` stands in the documentation."""
    patterns = documented()
    keys = {key for file in folder.rglob("metrics.jsonl") for line in file.open() for key in json.loads(line)}
    missing = sorted(key for key in keys if not any(pattern.fullmatch(key) for pattern in patterns))
    assert not missing, f"docs/metrics.md does not explain: {', '.join(missing)}"


def test_the_keys_that_a_run_writes_are_documented(tmp_path: Path) -> None:
    """The made-up run has the keys of a real one, but for `my/own_number`."""
    write_run(tmp_path / "run", Recipe())
    file = tmp_path / "run" / "metrics.jsonl"
    rows = [json.loads(line) for line in file.open()]
    file.write_text(
        "".join(json.dumps({k: v for k, v in row.items() if not k.startswith("my/")}) + "\n" for row in rows)
    )
    check_metrics(tmp_path)
