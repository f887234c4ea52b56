"""A reward function in a process of its own, so that one that hangs or crashes can be killed.

`python -m rlsys.scoring.process FD` is the child: it reads its function's description from the pipe, then replies to
requests until the pipe closes.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import subprocess
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe
from typing import Any

from rlsys.errors import WorkerError
from rlsys.rewards import Failed, registry
from rlsys.rewards.entry import bind_reward
from rlsys.runtime.garbage import freeze_started
from rlsys.runtime.logs import FailureLog
from rlsys.runtime.processes import exit_with_parent, kill_group, start_process
from rlsys.scoring.call import Reply, RewardLog, RewardRequest, call_reward
from rlsys.types import Outcome, RewardPart

START_DEADLINE_S = 300.0
TRACEBACK_LIMIT = -5  # the five innermost frames: the outermost are rlsys's own, the last is the one that raised

logger = logging.getLogger(__name__)


class CallFailedError(Exception):
    """A call failed as a whole; `part` is the outcome of each of its rows."""

    def __init__(self, outcome: Outcome, detail: str) -> None:
        super().__init__(detail)
        self.part = RewardPart(None, outcome, detail)


class RewardProcess:
    """One reward function (an entry of `rewards`) behind a pipe; its process is started again after it was killed.

    Args:
        spec: the entry of `rewards`.
        call_deadline_s: seconds that a call may take.
        row_deadline_s: seconds that a call of one row, or of one prompt's rows, may take when a call is retried.
        whole_groups: whether the function must see a prompt's responses together, in a retry too.
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
        self._failures = FailureLog(logger)
        self._called_at = time.monotonic()

    def start(self) -> None:
        """Start the process and load the function, if it is not running. Raises WorkerError if that fails."""
        self._started()

    def score(self, request: RewardRequest) -> tuple[list[RewardPart], RewardLog]:
        """Return one part per row and what the function logged.

        A call that fails as a whole is retried row by row, so that each row gets its own outcome; prompt by prompt if
        the function compares a prompt's responses. Rows that come after `call_deadline_s` of retries count as timeouts,
        because one bad batch must not hold up the step for as many deadlines as it has rows. In all it takes at most
        `longest_s` of these deadlines and the restarts of what was killed.

        Raises:
            WorkerError: the function cannot be loaded, and never was.
        """
        try:
            return self._call(request, self._call_deadline_s)
        except CallFailedError as error:
            self._failures.add(f"step {request.step}, {len(request)} rows are retried", error)
            return self._retry(request)

    def close(self) -> None:
        """Kill the process and everything that it started."""
        if self._process is not None:
            # The process leads a session of its own: what the function started is in the same process group.
            kill_group(self._process)
            self._process = None
        if self._pipe is not None:
            self._pipe.close()
            self._pipe = None

    def _retry(self, request: RewardRequest) -> tuple[list[RewardPart], RewardLog]:
        rows: list[RewardPart] = []
        log = RewardLog()
        # As `entry.longest_s` reckons: preflight compares its result with the deadlines of the roles.
        left = max(self._call_deadline_s, self._row_deadline_s)
        # Rows that share a prompt must stay together for a function that compares them; else each row is tried alone.
        for size in request.runs_of_prompts() if self._whole_groups else [1] * len(request):
            if left <= 0:
                rows += [RewardPart(None, "timeout", "not tried: earlier rows used up the deadline")] * size
                continue
            try:
                parts, part_log = self._call(request.part(len(rows), len(rows) + size), min(self._row_deadline_s, left))
                log.merge(part_log)
            except CallFailedError as error:
                parts = [error.part] * size
            left -= time.monotonic() - self._called_at  # restarting the process is not the rows' time
            rows += parts
        return rows, log

    def _call(self, request: RewardRequest, deadline_s: float) -> tuple[list[RewardPart], RewardLog]:
        """Call the function once. Raises CallFailedError for a failed call, WorkerError if it never could be loaded."""
        try:
            pipe = self._started()
        except WorkerError as error:
            if not self._was_loaded:
                raise
            raise self._failed("error", str(error)) from error  # a failed restart costs a call, not the run
        self._called_at = time.monotonic()
        try:
            pipe.send(replace(request, deadline_s=deadline_s))  # the function may ask how much time it has
            if not pipe.poll(deadline_s):
                self.close()  # a late reply would be taken for the answer to the next request
                raise self._failed("timeout", f"no result within {deadline_s:g} s; its process was killed")
            reply: Reply = pipe.recv()
        except (EOFError, OSError) as error:
            detail = f"its process died (exit code {self._exit_code()}): {error!r}"
            raise self._failed("error", detail) from error
        if reply.error is not None:
            raise self._failed("error", reply.error)
        return [self._part(score) for score in reply.scores], reply.log

    def _part(self, score: float | Failed | None) -> RewardPart:
        if score is None:
            return RewardPart(None, "not_applicable")
        if isinstance(score, Failed):
            return self._failed(score.outcome, score.detail).part
        if not math.isfinite(score):
            return self._failed("not_finite", f"returned {score}").part
        return RewardPart(score, "ok")

    def _failed(self, outcome: Outcome, detail: str) -> CallFailedError:
        return CallFailedError(outcome, f"reward '{self._spec['name']}': {detail}")

    def _started(self) -> Connection:
        """Return the pipe to the running process, which is started if there is none."""
        if self._pipe is not None:
            return self._pipe
        self._pipe, theirs = Pipe()
        command = [sys.executable, "-m", "rlsys.scoring.process", str(theirs.fileno())]
        self._process = start_process(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        # Imports are not the function's fault: they have a deadline of their own, before that of the first call.
        problem: str | None = f"its process did not start within {START_DEADLINE_S:g} s"
        try:
            self._pipe.send(self._spec)
            if self._pipe.poll(START_DEADLINE_S):
                problem = self._pipe.recv().error
        except (EOFError, OSError):
            problem = f"its process ended while it was imported (exit code {self._exit_code()})"
        if problem is not None or self._pipe is None:
            self.close()
            raise WorkerError(f"reward '{self._spec['name']}' cannot be loaded: {problem}")
        logger.info("reward '%s' runs in process %d", self._spec["name"], self._process.pid)
        self._was_loaded = True
        return self._pipe

    def _exit_code(self) -> int | None:
        """Return how the child ended, or None if it only closed the pipe; then it is killed."""
        code = None
        if self._process is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                code = self._process.wait(timeout=1.0)  # the pipe closes a moment before the process ends
        self.close()
        return code


def serve(pipe: Connection) -> None:
    """Load the function, then reply to requests until the pipe closes: the life of the child."""
    try:
        spec = pipe.recv()
        for module in registry.fact(str(spec["name"]), "imports", ()):
            importlib.import_module(module)
        function = bind_reward(spec)
    except Exception:
        pipe.send(Reply(error=traceback.format_exc(limit=TRACEBACK_LIMIT)))
        return
    freeze_started()
    pipe.send(Reply())  # loaded: deadlines of calls start to count
    while True:
        try:
            request: RewardRequest = pipe.recv()
        except EOFError:
            return
        log = RewardLog()
        try:
            pipe.send(Reply(call_reward(function, request, log), log.plain()))
        except Exception:
            pipe.send(Reply(error=traceback.format_exc(limit=TRACEBACK_LIMIT)))


if __name__ == "__main__":
    exit_with_parent()
    serve(Connection(int(sys.argv[1])))
