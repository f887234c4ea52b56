"""The collector stays out of the steps, and is back at the end of the process."""

from __future__ import annotations

import subprocess
import sys

PROGRAM = """
import atexit, gc
from rlsys.runtime.garbage import collect_rarely

atexit.register(lambda: print("frozen at the end:", gc.get_freeze_count()))  # the first registered runs last
collect_rarely()
print("frozen:", gc.get_freeze_count() > 0, "seldom:", gc.get_threshold()[0] > 700)
"""


def test_what_is_frozen_is_freed_at_the_end() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == ["frozen: True seldom: True", "frozen at the end: 0"]
