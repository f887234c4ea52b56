"""A pytest process on a machine with one imaginary GPU, or (`--plain`) on the machine as it is; it writes outcomes.

The shim must be loaded before torch, so these tests cannot run in a process that has torch already.
"""

from __future__ import annotations

import ctypes
import json
import os
import sys
from pathlib import Path

import pytest

from tests.fake_cuda.shim import build_shim

ON_GPU = "RLSYS_TEST_FAKE_GPU"  # environment: set in a process with the imaginary GPU


class Outcomes:
    """A pytest plugin that keeps each test's outcome, with what went wrong or why the test was skipped."""

    def __init__(self) -> None:
        self.found: dict[str, tuple[str, str]] = {}

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the call's report, or that of a setup or teardown which did not pass."""
        text = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longreprtext
        if report.when == "call" or report.outcome != "passed":
            self.found[report.nodeid] = (report.outcome, text)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Keep what could not be imported."""
        if report.failed:
            self.found[report.nodeid] = ("failed", report.longreprtext)


def main(results: str, kind: str, *tests: str) -> None:
    """Run the tests, write their outcomes as JSON, and end the process."""
    if kind != "--plain":
        os.environ |= {ON_GPU: "1", "DS_ACCELERATOR": "cuda"}  # the second as for workers (build/placement.py)
        ctypes.CDLL(str(build_shim()), mode=ctypes.RTLD_GLOBAL)
        from tests.fake_cuda.pretence import pretend

        pretend()
    outcomes = Outcomes()
    code = pytest.main(["-p", "no:cacheprovider", "-q", *tests], plugins=[outcomes])
    Path(results).write_text(json.dumps(outcomes.found), encoding="utf-8")
    sys.stdout.flush()
    os._exit(int(code))  # Python's own end would wait for the device


if __name__ == "__main__":
    main(*sys.argv[1:])
