"""Nothing is left running: every process of a run carries a tag in its environment, and a guardian sweeps it.

`python -m rlsys.runtime.processes TAG` is the guardian: it outlives the driver by one sweep. It wakes when the pipe
from the driver closes, however the driver ended, and kills what still carries the tag.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
import uuid

import psutil

TAG = "RLSYS_RUN_TAG"
GRACE_S = 2.0


def tagged(tag: str) -> list[psutil.Process]:
    """Processes of this user on this host whose environment carries the tag, without this process and its parents."""
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            if process.pid not in spared and process.environ().get(TAG) == tag:
                found.append(process)
    return found


def sweep(tag: str, *, grace_s: float = GRACE_S) -> int:
    """End every tagged process: SIGTERM, then SIGKILL after `grace_s`, until none is left. Returns how many."""
    ended: set[int] = set()
    for process in tagged(tag):
        with contextlib.suppress(psutil.Error):
            process.terminate()
    deadline = time.monotonic() + grace_s
    while (left := tagged(tag)) and time.monotonic() < deadline + 5.0:
        ended.update(process.pid for process in left)
        if time.monotonic() >= deadline:
            for process in left:
                with contextlib.suppress(psutil.Error):
                    process.kill()
        time.sleep(0.05)
    return len(ended)


class Guardian:
    """Tags this process and everything it starts from now on; `close` (or this process's death) ends all of them."""

    def __init__(self) -> None:
        self.tag = uuid.uuid4().hex
        read_end, self._write_end = os.pipe()
        environment = {key: value for key, value in os.environ.items() if key != TAG}
        # A session of its own: Ctrl-C in the terminal must not reach it. Untagged: it must not sweep itself.
        self._process = subprocess.Popen(
            [sys.executable, "-m", "rlsys.runtime.processes", self.tag],
            stdin=read_end,
            start_new_session=True,
            env=environment,
        )
        os.close(read_end)
        os.environ[TAG] = self.tag

    def close(self) -> None:
        """Let the guardian sweep now, and wait for it."""
        os.environ.pop(TAG, None)
        os.close(self._write_end)
        self._process.wait(timeout=30)


def main() -> None:
    """The guardian's life: wait for the end of standard input, then sweep."""
    tag = sys.argv[1]
    with contextlib.suppress(KeyboardInterrupt):
        sys.stdin.buffer.read()
    sweep(tag)


if __name__ == "__main__":
    main()
