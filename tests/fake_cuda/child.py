"""A pytest process that records the pieces it enters; with `--gpu` on a machine with one imaginary GPU.

The shim must be loaded before torch, so the tests on the imaginary GPU cannot run in a process that has torch already.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.fake_cuda.recorder import Recorder
from tests.fake_cuda.shim import build_shim

ON_GPU = "RLSYS_TEST_FAKE_GPU"  # environment: set in a process with the imaginary GPU


class Outcomes:
    """A pytest plugin that keeps each test's outcome: what went wrong, or why it was skipped."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst of a test's three phases."""
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        if report.when == "call" or report.outcome != "passed":
            self.found[report.nodeid] = (report.outcome, text + report.capstderr[-2000:] * report.failed)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep what could not be imported."""
        if report.failed:
            self.found[report.nodeid] = ("failed", report.longreprtext)


def run_child(arguments: list[str]) -> None:
    """Run pytest and write outcomes and entered pieces as JSON; end the process."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--results", type=Path, required=True)
    options, tests = parser.parse_known_args(arguments)
    recorder, outcomes = Recorder(), Outcomes()
    recorder.start()
    if options.gpu:
        os.environ[ON_GPU] = "1"
        os.environ["DS_ACCELERATOR"] = "cuda"  # as workers on GPUs have it (build/placement.py)
        ctypes.CDLL(str(build_shim()), mode=ctypes.RTLD_GLOBAL)
        from tests.fake_cuda.pretence import pretend

        pretend()
    code = pytest.main(["-p", "no:cacheprovider", "-q", *tests], plugins=[outcomes])
    results: dict[str, Any] = {"outcomes": outcomes.found, "entered": sorted(recorder.entered)}
    options.results.write_text(json.dumps(results), encoding="utf-8")
    sys.stdout.flush()
    # Without the interpreter's end, in which threads of an imaginary device would be waited for.
    os._exit(0 if code in (0, 5) else int(code))


if __name__ == "__main__":
    run_child(sys.argv[1:])
