"""A reward function in a process of its own, so that a hung or crashing one can be killed.

`python -m rlsys.scoring.process FD` is the child: it reads its function's description, then answers calls until the
pipe closes.
"""

from __future__ import annotations

import contextlib
import importlib
import math
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection, Pipe
from typing import Any

from rlsys.errors import WorkerError
from rlsys.rewards import Failed, registry
from rlsys.rewards.entry import bind_reward
from rlsys.runtime.garbage import freeze_started
from rlsys.runtime.processes import exit_with_parent
from rlsys.scoring.call import RewardLog, RewardRequest, call_reward
from rlsys.types import Outcome, RewardPart

START_DEADLINE_S = 300.0


@dataclass(frozen=True)
class Answer:
    """What one call gave: a part a row, or the failure of the call as a whole."""

    parts: list[RewardPart]
    log: RewardLog
    failure: RewardPart | None = None


class RewardProcess:
    """One reward function (an entry of `rewards`) behind a pipe, restarted after every kill.

    Args:
        whole_groups: it sees a prompt's responses together, in a retry as well.
    """

    def __init__(
        self, spec: Mapping[str, Any], *, call_deadline_s: float, row_deadline_s: float, whole_groups: bool = False
    ) -> None:
        self._spec = dict(spec)
        self._whole_groups = whole_groups or registry.fact(str(spec["name"]), "whole_groups", False)
        self._call_deadline_s = call_deadline_s
        self._row_deadline_s = row_deadline_s
        self._process: subprocess.Popen[bytes] | None = None
        self._pipe: Connection | None = None
        self._was_loaded = False

    def score(self, request: RewardRequest) -> tuple[list[RewardPart], RewardLog]:
        """One part a row. A call that fails as a whole is retried row by row, so that each row gets its own outcome; of
        a function that compares a prompt's responses prompt by prompt.

        Rows that come after `call_deadline_s` of retries are counted as timeouts: one bad batch must not hold up the
        step for rows * deadline. It takes `longest_s` of these deadlines, and the restarts of what was killed.
        """
        answer = self._call(request, self._call_deadline_s)
        if answer.failure is None:
            return answer.parts, answer.log
        rows: list[RewardPart] = []
        log = RewardLog()
        end = time.monotonic() + max(self._call_deadline_s, self._row_deadline_s)
        for size in request.runs_of_prompts() if self._whole_groups else [1] * len(request):
            left = end - time.monotonic()
            if left <= 0:
                rows += [RewardPart(None, "timeout", "not tried: earlier rows used up the deadline")] * size
                continue
            part = self._call(request.part(len(rows), len(rows) + size), min(self._row_deadline_s, left))
            rows += part.parts if part.failure is None else [part.failure] * size
            log.merge(part.log)
        return rows, log

    def start(self) -> None:
        """Load the function, so that the first call need not. Raises WorkerError when it cannot."""
        self._ensure_started()

    def close(self) -> None:
        """Kill the child."""
        if self._process is not None:
            # Its own session: what the function started ends with it.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _call(self, request: RewardRequest, deadline_s: float) -> Answer:
        try:
            pipe = self._ensure_started()
        except WorkerError as error:
            if not self._was_loaded:
                raise
            return self._failed("error", str(error))  # a restart that fails is a failed call, not the run's end
        try:
            pipe.send(replace(request, deadline_s=deadline_s))
            if not pipe.poll(deadline_s):
                self.close()
                return self._failed("timeout", f"no answer within {deadline_s:g} s; its process was killed")
            kind, payload, log = pipe.recv()
        except (EOFError, OSError) as error:
            return self._failed("error", f"its process died (exit code {self._exit_code()}): {error!r}")
        if kind == "error":
            return self._failed("error", payload)
        return Answer([self._part(value) for value in payload], log)

    def _part(self, value: float | Failed | None) -> RewardPart:
        if value is None:
            return RewardPart(None, "not_applicable")
        if isinstance(value, Failed):
            return RewardPart(None, value.outcome, f"reward '{self._spec['name']}': {value.detail}")
        if not math.isfinite(value):
            return RewardPart(None, "not_finite", f"reward '{self._spec['name']}': returned {value}")
        return RewardPart(value, "ok")

    def _exit_code(self) -> int | None:
        """How the child ended; None when it closed the pipe and lives on, which ends now."""
        code = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=1.0)
        self.close()
        return code

    def _failed(self, outcome: Outcome, detail: str) -> Answer:
        return Answer([], RewardLog(), RewardPart(None, outcome, f"reward '{self._spec['name']}': {detail}"))

    def _ensure_started(self) -> Connection:
        if self._pipe is not None:
            return self._pipe
        ours, theirs = Pipe()
        command = [sys.executable, "-m", "rlsys.scoring.process", str(theirs.fileno())]
        self._process = subprocess.Popen(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        self._pipe = ours
        with contextlib.suppress(BrokenPipeError):  # a child that is gone already is reported below
            ours.send(self._spec)
        # Starting (imports) is not the function's fault: it has a deadline of its own.
        problem = f"its process did not start in {START_DEADLINE_S:g} s"
        if ours.poll(START_DEADLINE_S):
            try:
                problem = ours.recv()
            except (EOFError, OSError):
                problem = f"its process ended while it was imported (exit code {self._exit_code()})"
        if problem is not None:
            self.close()
            raise WorkerError(f"reward '{self._spec['name']}' cannot be loaded: {problem}")
        self._was_loaded = True
        return ours


def serve(pipe: Connection) -> None:
    """The child's life: load the function, answer calls, stop at the end of the pipe."""
    try:
        spec = pipe.recv()
        for module in registry.fact(str(spec["name"]), "imports", ()):
            importlib.import_module(module)
        function = bind_reward(spec)
    except Exception:
        pipe.send(traceback.format_exc(limit=5))
        return
    freeze_started()
    pipe.send(None)
    while True:
        try:
            request: RewardRequest = pipe.recv()
        except EOFError:
            return
        log = RewardLog()
        try:
            scores = call_reward(function, request, log)
            pipe.send(("ok", scores, log.plain()))
        except Exception:
            pipe.send(("error", traceback.format_exc(limit=5), RewardLog()))


if __name__ == "__main__":
    exit_with_parent()
    serve(Connection(int(sys.argv[1])))
