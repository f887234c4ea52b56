"""A reward function in a process of its own, so that one that hangs or crashes can be killed.

`python -m rlsys.scoring.process FD` is the child: it reads its function's description from the pipe, then replies to
requests until the pipe closes.
"""

from __future__ import annotations

import contextlib
import importlib
import logging
import math
import os
import socket
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Mapping
from dataclasses import replace
from multiprocessing.connection import Connection, Pipe
from typing import Any

from rlsys.errors import WorkerError
from rlsys.rewards import Failed, registry
from rlsys.rewards.entry import RESTARTS_S, bind_reward
from rlsys.runtime.garbage import freeze_started
from rlsys.runtime.logs import FailureLog, end_of_own_log
from rlsys.runtime.processes import exit_with_parent, kill_group, start_process
from rlsys.scoring.call import Reply, RewardLog, RewardRequest, WrongReturnError, call_reward
from rlsys.types import Outcome, RewardPart

START_DEADLINE_S = 300.0
TRACEBACK_LIMIT = -5  # the five innermost frames: the outermost are rlsys's own, the last is the one that raised

logger = logging.getLogger(__name__)


class CallFailedError(Exception):
    """A call failed as a whole; `part` is the outcome of each of its rows.

    It `ends_retries` when asking again cannot help: the function returned something wrong, or cannot be loaded again.
    """

    def __init__(self, outcome: Outcome, detail: str, *, ends_retries: bool = False) -> None:
        super().__init__(detail)
        self.part = RewardPart(None, outcome, detail)
        self.ends_retries = ends_retries


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
        self._has_scored_several = False  # whether a call of several rows returned as many values
        self._failures = FailureLog(logger)
        self._restarts_s = 0.0  # seconds spent on starting the process again in the retries of a call

    def start(self) -> None:
        """Start the process and load the function, if it is not running. Raises WorkerError if that fails."""
        self._started()

    def score(self, request: RewardRequest) -> tuple[list[RewardPart], RewardLog]:
        """Return one part per row and what the function logged.

        A call in which the function raises, hangs or dies is retried row by row, so that each row gets its own outcome;
        prompt by prompt if the function compares a prompt's responses. A function that returned something is never
        asked again: fewer rows would be another question. Rows that come after `call_deadline_s` of retries, or
        `RESTARTS_S` of restarts, count as timeouts, because one bad batch must not hold up the step for as many
        deadlines as it has rows.

        Raises:
            WorkerError: the function cannot be loaded, and never was; or it returned another number of values than
                rows, and has never returned the right number of several.
        """
        try:
            return self._call(request, self._call_deadline_s)
        except CallFailedError as error:
            if error.ends_retries:
                self._failures.add(f"step {request.step}, {len(request)} rows", error)
                return [error.part] * len(request), RewardLog()
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
        self._restarts_s = 0.0
        # As `entry.longest_s` reckons: preflight compares its result with the deadlines of the roles.
        left, given_up = max(self._call_deadline_s, self._row_deadline_s), None
        # Rows that share a prompt must stay together for a function that compares them; else each row is tried alone.
        for size in request.runs_of_prompts() if self._whole_groups else [1] * len(request):
            if left <= 0:
                given_up = RewardPart(None, "timeout", "not tried: earlier rows used up the deadline")
            elif self._restarts_s > RESTARTS_S:
                given_up = RewardPart(None, "timeout", "not tried: earlier rows killed the process too often")
            if given_up is not None:
                rows += [given_up] * size
                continue
            started, restarts_s = time.monotonic(), self._restarts_s
            try:
                parts, part_log = self._call(request.part(len(rows), len(rows) + size), min(self._row_deadline_s, left))
                log.merge(part_log)
            except CallFailedError as error:
                parts = [error.part] * size
                # Without a process there is nothing to ask; a row with a wrong answer says nothing about the others.
                given_up = error.part if error.ends_retries and self._pipe is None else None
            # Restarting the process is not the rows' time.
            left -= time.monotonic() - started - (self._restarts_s - restarts_s)
            rows += parts
        return rows, log

    def _call(self, request: RewardRequest, deadline_s: float) -> tuple[list[RewardPart], RewardLog]:
        """Call the function once. Raises CallFailedError for a failed call, WorkerError for a function of no use."""
        started = time.monotonic()
        try:
            pipe = self._started()
        except WorkerError as error:
            if not self._was_loaded:
                raise
            # A failed restart costs a call, not the run.
            raise self._failed("error", str(error), ends_retries=True) from error
        finally:
            self._restarts_s += time.monotonic() - started
        try:
            # The function may ask how much time it has.
            reply = _exchange(pipe, replace(request, deadline_s=deadline_s), deadline_s)
        except TimeoutError as error:
            self.close()  # a late reply would be taken for the answer to the next request
            detail = f"no result within {deadline_s:g} s; its process was killed{end_of_own_log()}"
            raise self._failed("timeout", detail) from error
        except (EOFError, OSError) as error:
            detail = f"its process died (exit code {self._exit_code()}): {error!r}{end_of_own_log()}"
            raise self._failed("error", detail) from error
        if reply.error is not None:
            if reply.has_returned and not self._has_scored_several:
                raise WorkerError(f"reward '{self._spec['name']}' {reply.error}")
            raise self._failed("error", reply.error, ends_retries=reply.has_returned)
        self._has_scored_several |= len(request) > 1
        return [self._part(score) for score in reply.scores], reply.log

    def _part(self, score: float | Failed | None) -> RewardPart:
        if score is None:
            return RewardPart(None, "not_applicable")
        if isinstance(score, Failed):
            return self._failed(score.outcome, score.detail).part
        if not math.isfinite(score):
            return self._failed("not_finite", f"returned {score}").part
        return RewardPart(score, "ok")

    def _failed(self, outcome: Outcome, detail: str, *, ends_retries: bool = False) -> CallFailedError:
        return CallFailedError(outcome, f"reward '{self._spec['name']}': {detail}", ends_retries=ends_retries)

    def _started(self) -> Connection:
        """Return the pipe to the running process, which is started if there is none."""
        if self._pipe is not None:
            return self._pipe
        self._pipe, theirs = Pipe()
        # Unbuffered: what the function printed last is in the log although its process is killed.
        # -P: not the working directory's modules before the libraries.
        command = [sys.executable, "-u", "-P", "-m", "rlsys.scoring.process", str(theirs.fileno())]
        self._process = start_process(
            command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, start_new_session=True
        )
        theirs.close()
        # Imports are not the function's fault: they have a deadline of their own, before that of the first call.
        try:
            problem = _exchange(self._pipe, self._spec, START_DEADLINE_S).error
        except TimeoutError:
            problem = f"its process did not start within {START_DEADLINE_S:g} s"
        except (EOFError, OSError):
            problem = f"its process ended while it was imported (exit code {self._exit_code()}){end_of_own_log()}"
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


def _exchange(pipe: Connection, message: Any, deadline_s: float) -> Reply:
    """Send a message and return the reply. Raises TimeoutError after `deadline_s`; the pipe is then of no more use.

    Sending and receiving may both block, when the other side stops in the middle of a message. So at the deadline the
    pipe is shut down, which ends either.
    """
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        with socket.socket(fileno=os.dup(pipe.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)

    timer = threading.Timer(deadline_s, expire)
    timer.start()
    try:
        pipe.send(message)
        reply: Reply = pipe.recv()
    except (EOFError, OSError) as error:
        if expired.is_set():
            raise TimeoutError from error
        raise
    finally:
        timer.cancel()
        timer.join()  # it uses the pipe
    if expired.is_set():  # just after the reply
        raise TimeoutError
    return reply


def serve(pipe: Connection) -> None:
    """Load the function, then reply to requests until the pipe closes: the life of the child."""
    try:
        spec = pipe.recv()
        for module in registry.fact(str(spec["name"]), "imports", ()):
            importlib.import_module(module)
        function = bind_reward(spec)
    except Exception:
        pipe.send(_raised())
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
            reply = Reply(call_reward(function, request, log), log.plain())
        except WrongReturnError as error:
            reply = Reply(error=str(error))
        except Exception:
            reply = _raised()
        pipe.send(reply)


def _raised() -> Reply:
    return Reply(error=traceback.format_exc(limit=TRACEBACK_LIMIT), has_returned=False)


if __name__ == "__main__":
    exit_with_parent()
    serve(Connection(int(sys.argv[1])))
