"""Reward functions in processes of their own: one bad row costs that row and nothing else."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest

from rlsys.errors import WorkerError
from rlsys.rewards.entry import longest_s
from rlsys.runtime.logs import LOG_DIR, WORKER
from rlsys.scoring.call import RewardRequest
from rlsys.scoring.process import RewardProcess
from rlsys.types import RewardPart

FUNCTIONS = """
import asyncio
import os
import sys
import time

def length(completions, answer, *, scale=1.0, **_):
    print("printed to standard output", *completions)
    sys.stdout.write("x" * 100_000)
    sys.stdout.flush()
    return [None if a is None else scale * len(c) for c, a in zip(completions, answer)]

def picky(completions, log_metric, **_):
    for completion in completions:
        if completion == "bad":
            raise ValueError(f"cannot score {completion!r}")
        log_metric("characters", len(completion))
    return [float(len(c)) for c in completions]

def hangs(completions, **_):
    if "bad" in completions:
        open(__file__ + ".hangs", "w").close()
    while "bad" in completions:
        time.sleep(0.05)
    return [float(len(c)) for c in completions]

def dies(completions, **_):
    if "bad" in completions:
        os._exit(3)
    return [float(len(c)) for c in completions]

def overflows(completions, **_):
    return [float("nan") if c == "bad" else float("-inf") if c == "worse" else 1.0 for c in completions]

def longest(completions, **_):
    if "bad" in completions:
        raise ValueError("no")
    return [float(len(c) == max(map(len, completions))) for c in completions]

class Grade:
    def __str__(self):
        return "good"

def notes(completions, log_extra, **_):
    log_extra("grade", [Grade() for _ in completions])
    return [1.0 for _ in completions]

def asked(completions, trainer_state, **rest):
    assert "deadline_s" not in rest
    return [trainer_state.global_step / trainer_state.max_steps + trainer_state.epoch for _ in completions]

def timed(completions, deadline_s, **_):
    return [deadline_s for _ in completions]

kept = []

async def pooled(completions, **_):
    if not kept:  # as a client that is made once and keeps its connections
        kept.append((asyncio.get_running_loop(), asyncio.Lock()))
    loop, lock = kept[0]
    waiting = asyncio.ensure_future(held(lock))
    await asyncio.sleep(0)
    async with lock:
        await waiting
    return [float(loop is asyncio.get_running_loop()) for _ in completions]

async def held(lock):
    async with lock:
        await asyncio.sleep(0.01)

answered = []

async def ask(completion):
    if completion == "bad":
        raise ValueError("no")
    await asyncio.sleep(0.05)
    answered.append(completion)
    return float(len(answered))

async def asks(completions, **_):
    return await asyncio.gather(*(ask(c) for c in completions))

def deep(completions, **_):
    return [below(completion, 8) for completion in completions]

def below(completion, levels):
    return below(completion, levels - 1) if levels else raising(completion)

def raising(completion):
    raise ValueError("far down")

def one_value(completions, **_):
    return [1.0]

def only_answered(completions, answer, **_):
    return [1.0 for a in answer if a is not None]

def answers_or_raises(completions, **_):
    if "bad" in completions:
        raise ValueError("bad")
    return [1.0 for c in completions if c != "none"]

def no_list(completions, **_):
    return {completion: 1.0 for completion in completions}

def odd(completions, **_):
    return ["2.5" if c == "text" else "good" if c == "bad" else 1.0 for c in completions]

def notes_oddly(completions, log_extra, log_metric, **_):
    log_extra(("a", "tuple"), [{("x", "y"): 1}, 2])
    log_metric(("b", 1), 3)
    return [1.0 for _ in completions]

def stops(completions, **_):
    os.kill(os.getpid(), 19)  # SIGSTOP, in the middle of the first call

def holds_the_gil(completions, **_):
    import ctypes
    open(completions[0], "w").write(str(os.getpid()))
    ctypes.PyDLL(None).sleep(600)

def identity(completions, **_):
    return [float(os.getpid()) for _ in completions]
"""
Start = Callable[..., RewardProcess]


class Clock:
    """The monotonic clock, and seconds ahead of it."""

    ahead_s = 0.0

    def monotonic(self) -> float:
        return time.monotonic() + self.ahead_s


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Start one of the functions above in a process, with options."""
    (tmp_path / "functions.py").write_text(FUNCTIONS)
    started: list[RewardProcess] = []

    def starter(
        name: str, *, call_s: float = 60.0, row_s: float = 60.0, whole_groups: bool = False, **options: float
    ) -> RewardProcess:
        spec = {"name": f"{tmp_path}/functions.py:{name}", "weight": 1.0, **options}
        started.append(RewardProcess(spec, call_deadline_s=call_s, row_deadline_s=row_s, whole_groups=whole_groups))
        return started[-1]

    yield starter
    for process in started:
        process.close()


def request(*completions: str, answer: Sequence[str | None] | None = None) -> RewardRequest:
    answers = list(answer) if answer is not None else ["?"] * len(completions)
    return RewardRequest(
        prompts=["?"] * len(completions),
        completions=completions,
        completion_ids=[[1]] * len(completions),
        columns={"answer": answers},
        step=1,
    )


def outcomes(parts: Sequence[RewardPart]) -> list[tuple[float | None, str]]:
    return [(part.value, part.outcome) for part in parts]


def test_a_good_call_though_the_function_prints(start: Start) -> None:
    process = start("length", scale=2.0)
    parts, _ = process.score(request("one", "three", "", answer=["?", None, "?"]))
    assert outcomes(parts) == [(6.0, "ok"), (None, "not_applicable"), (0.0, "ok")]
    parts, _ = process.score(request("four"))
    assert outcomes(parts) == [(8.0, "ok")]


def test_the_process_is_another_one_and_stays(start: Start) -> None:
    process = start("identity")
    first, again = (process.score(request("a"))[0][0].value for _ in range(2))
    assert first == again
    assert first != os.getpid()


def test_an_exception_costs_its_row(start: Start) -> None:
    process = start("picky")
    parts, log = process.score(request("bad", "three", "sixsix"))
    assert outcomes(parts) == [(None, "error"), (5.0, "ok"), (6.0, "ok")]
    assert "ValueError: cannot score 'bad'" in parts[0].detail
    assert "picky" in parts[0].detail
    assert log.metrics == {"characters": [5.0, 6.0]}  # of every row that was scored


def test_the_message_has_the_frame_that_raised_however_deep_it_is(start: Start) -> None:
    parts, _ = start("deep").score(request("bad"))
    assert ", in raising\n" in parts[0].detail
    assert parts[0].detail.rstrip().endswith("ValueError: far down")


def test_a_result_that_is_not_finite_is_named_and_no_reward(start: Start) -> None:
    parts, _ = start("overflows").score(request("bad", "good", "worse"))
    assert outcomes(parts) == [(None, "not_finite"), (1.0, "ok"), (None, "not_finite")]
    assert [part.detail.rpartition(": ")[2] for part in parts] == ["returned nan", "", "returned -inf"]


def test_another_number_of_values_than_completions_ends_the_run(start: Start) -> None:
    process = start("one_value")
    assert outcomes(process.score(request("alone"))[0]) == [(1.0, "ok")]
    with pytest.raises(WorkerError, match=r"one_value' returned 1 value for 16 completions"):
        process.score(request(*["a"] * 16))


def test_after_a_right_call_another_number_of_values_costs_its_rows_without_a_retry(start: Start) -> None:
    process = start("only_answered")
    assert outcomes(process.score(request("a", "b"))[0]) == [(1.0, "ok")] * 2
    parts, _ = process.score(request("a", "b", "c", answer=["?", None, "?"]))
    assert [part.outcome for part in parts] == ["error"] * 3
    assert "returned 2 values for 3 completions" in parts[0].detail


def test_in_a_retry_a_wrong_answer_costs_its_row(start: Start) -> None:
    process = start("answers_or_raises")
    assert outcomes(process.score(request("a", "b"))[0]) == [(1.0, "ok")] * 2
    parts, _ = process.score(request("bad", "none", "c"))
    assert outcomes(parts) == [(None, "error"), (None, "error"), (1.0, "ok")]
    assert "returned 0 values for 1 completion;" in parts[1].detail


def test_what_is_no_list_is_no_answer(start: Start) -> None:
    with pytest.raises(WorkerError, match=r"returned dict .*it must return a list with one number per completion"):
        start("no_list").score(request("a", "b"))


def test_a_value_that_is_no_number_costs_its_row(start: Start) -> None:
    parts, _ = start("odd").score(request("text", "bad", "fine"))
    assert outcomes(parts) == [(2.5, "ok"), (None, "error"), (1.0, "ok")]
    assert "returned str 'good' for this completion" in parts[1].detail


def test_what_is_logged_oddly_costs_no_score(start: Start) -> None:
    parts, log = start("notes_oddly").score(request("a", "b"))
    assert outcomes(parts) == [(1.0, "ok")] * 2
    assert log.extra == {"('a', 'tuple')": ["{('x', 'y'): 1}", 2]}
    assert log.metrics == {"('b', 1)": [3.0]}


def test_a_stopped_process_meets_the_deadline_though_it_reads_nothing(start: Start) -> None:
    process = start("identity", call_s=1.0)
    pid = process.score(request("a"))[0][0].value
    assert pid is not None
    os.kill(int(pid), signal.SIGSTOP)
    parts, _ = process.score(request("x" * 10_000_000))  # far more than a pipe holds
    assert parts[0].outcome == "ok"  # in the retry, by another process
    assert parts[0].value != pid


def test_a_process_that_stops_itself_meets_the_deadline(start: Start) -> None:
    parts, _ = start("stops", call_s=0.5, row_s=0.5).score(request("a"))
    assert [part.outcome for part in parts] == ["timeout"]


def test_restarts_take_none_of_the_retries_time(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    process, started, clock = start("dies"), RewardProcess._started, Clock()

    def slow(self: RewardProcess) -> Any:
        clock.ahead_s += 50.0 * (self._pipe is None)
        return started(self)

    monkeypatch.setattr(RewardProcess, "_started", slow)
    monkeypatch.setattr("rlsys.scoring.process.time", clock)
    monkeypatch.setattr("rlsys.scoring.process.RESTARTS_S", 1000.0)
    parts, _ = process.score(request("bad", "bad", "bad", "three"))
    assert [part.outcome for part in parts] == ["error", "error", "error", "ok"]
    monkeypatch.setattr("rlsys.scoring.process.RESTARTS_S", 60.0)
    parts, _ = process.score(request("bad", "bad", "bad", "three"))
    assert [part.outcome for part in parts] == ["error", "error", "timeout", "timeout"]
    assert "earlier rows killed the process too often" in parts[3].detail


NEIGHBOUR = """
WORTH = 2.5

def worth(completion):
    return WORTH * len(completion)
"""
POOLED = """
import multiprocessing
from concurrent.futures import ProcessPoolExecutor
from helpers_of_rewards import worth

def one(completion):
    return worth(completion)

def pooled(completions, **_):
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.map(one, completions)

def lazily(completions, **_):
    import more_helpers
    return [more_helpers.VALUE for _ in completions]
"""


def test_a_file_s_neighbours_and_the_processes_that_it_spawns(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "helpers_of_rewards.py").write_text(NEIGHBOUR)
    (tmp_path / "more_helpers.py").write_text("VALUE = 4.0")
    (tmp_path / "theirs.py").write_text(POOLED)
    (tmp_path / "other").mkdir()
    monkeypatch.chdir(tmp_path / "other")
    for name, wanted in (("pooled", [2.5, 5.0]), ("lazily", [4.0, 4.0])):
        process = RewardProcess({"name": f"{tmp_path}/theirs.py:{name}"}, call_deadline_s=120.0, row_deadline_s=1.0)
        try:
            assert [part.value for part in process.score(request("a", "bb"))[0]] == wanted
        finally:
            process.close()


PARENT = """
import sys
from rlsys.scoring.call import RewardRequest
from rlsys.scoring.process import RewardProcess
process = RewardProcess({"name": sys.argv[1]}, call_deadline_s=600.0, row_deadline_s=600.0)
process.score(RewardRequest(["?"], [sys.argv[2]], [[1]], {}, step=1))
"""


def test_a_function_that_holds_the_interpreter_ends_with_its_worker(start: Start, tmp_path: Path) -> None:
    start("identity")  # writes the file
    note = tmp_path / "pid"
    parent = subprocess.Popen([sys.executable, "-c", PARENT, f"{tmp_path}/functions.py:holds_the_gil", str(note)])
    deadline = time.monotonic() + 60.0
    while not (note.is_file() and note.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    child = psutil.Process(int(note.read_text()))
    parent.kill()
    parent.wait()
    child.wait(timeout=30.0)


def test_a_hang_costs_its_row(start: Start, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The call's time passes, then row by row: the first is scored, the second hangs for its own time.
    class Timer(threading.Timer):
        """A deadline that comes as soon as the function hangs: no row that does not hang is ever late."""

        def run(self) -> None:
            while not self.finished.wait(0.01):
                if (note := tmp_path / "functions.py.hangs").exists():
                    note.unlink()
                    self.function()
                    return

    monkeypatch.setattr("rlsys.scoring.process.threading.Timer", Timer)
    process = start("hangs", call_s=600.0, row_s=300.0)
    parts, _ = process.score(request("one", "bad", "three"))
    assert outcomes(parts) == [(3.0, "ok"), (None, "timeout"), (5.0, "ok")]
    assert "no result within 300 s" in parts[1].detail
    assert outcomes(process.score(request("four"))[0]) == [(4.0, "ok")]


def test_a_death_costs_its_row_and_the_process_is_started_again(start: Start) -> None:
    process = start("dies")
    parts, _ = process.score(request("one", "bad", "three"))
    assert outcomes(parts) == [(3.0, "ok"), (None, "error"), (5.0, "ok")]
    assert "its process died (exit code 3)" in parts[1].detail
    assert "The end of" not in parts[1].detail  # outside a run there is no log
    assert outcomes(process.score(request("four"))[0]) == [(4.0, "ok")]


def test_what_it_printed_before_it_died_is_in_the_error(tmp_path: Path) -> None:
    """A worker of a run: the child's output goes to the worker's log, whose end the error shows."""
    (tmp_path / "mine.py").write_text(
        "import os\n\ndef score(completions, **_):\n    print('about to die')\n    os._exit(3)\n"
    )
    script = "import sys; from rlsys.runtime.logs import log_worker; from rlsys.scoring.process import RewardProcess\n"
    script += "from rlsys.scoring.call import RewardRequest\nlog_worker()\n"
    script += "process = RewardProcess({'name': sys.argv[1]}, call_deadline_s=60.0, row_deadline_s=60.0)\n"
    script += "parts, _ = process.score(RewardRequest(['?'], ['a'], [[1]], {}, step=1))\n"
    script += "open(sys.argv[2], 'w').write(parts[0].detail); process.close()"
    command = [sys.executable, "-c", script, f"{tmp_path}/mine.py:score", str(tmp_path / "detail")]
    subprocess.run(command, env={**os.environ, LOG_DIR: str(tmp_path), WORKER: "scoring/0"}, check=True, timeout=120)
    said = (tmp_path / "detail").read_text()
    assert "its process died (exit code 3)" in said
    assert "about to die" in said.partition(f"The end of {tmp_path}/scoring-0.log:")[2]


def test_many_hangs_do_not_hold_up_the_step(start: Start) -> None:
    process = start("hangs", call_s=0.3, row_s=0.3)
    parts, _ = process.score(request("bad", "bad", "bad", "bad"))
    assert outcomes(parts) == [(None, "timeout")] * 4
    assert "not tried: earlier rows used up the deadline" in parts[3].detail


def test_a_function_that_cannot_be_loaded(start: Start) -> None:
    process = start("length", scal=2.0)
    with pytest.raises(WorkerError, match=r"cannot be loaded(.|\n)*no option 'scal'"):
        process.score(request("one"))


def test_a_function_whose_import_ends_the_process(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text("import os\nos._exit(7)\n")
    process = RewardProcess({"name": f"{tmp_path}/broken.py:score"}, call_deadline_s=5.0, row_deadline_s=1.0)
    with pytest.raises(WorkerError, match=r"broken.py:score' cannot be loaded: .*ended.*exit code 7"):
        process.start()


def test_closing_ends_the_process(start: Start) -> None:
    process = start("identity")
    pid = process.score(request("a"))[0][0].value
    assert pid is not None
    process.close()
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid), 0)
    process.close()  # twice is as good as once


def test_a_function_that_compares_responses_is_tried_again_prompt_by_prompt(start: Start) -> None:
    """Row by row each response would be the longest and the shortest of its prompt."""
    process = start("longest", whole_groups=True)
    parts, _ = process.score(RewardRequest(["a", "a", "b", "b"], ["x", "xx", "bad", "x"], [[1]] * 4, {}, step=1))
    assert outcomes(parts) == [(0.0, "ok"), (1.0, "ok"), (None, "error"), (None, "error")]


def test_what_is_noted_needs_no_class_of_the_function_s(start: Start) -> None:
    parts, log = start("notes").score(request("a", "b"))
    assert outcomes(parts) == [(1.0, "ok")] * 2
    assert log.extra == {"grade": ["good", "good"]}


def test_a_function_is_told_where_the_run_stands_and_on_request_how_long_it_has(start: Start) -> None:
    asked = replace(request("a"), step=3, num_steps=12, epoch=0.5)
    assert outcomes(start("asked").score(asked)[0]) == [(0.75, "ok")]
    assert outcomes(start("timed", call_s=7.0).score(request("a"))[0]) == [(7.0, "ok")]


def test_coroutines_of_every_call_share_a_loop(start: Start) -> None:
    process = start("pooled")
    assert [outcomes(process.score(request("a"))[0]) for _ in range(3)] == [[(1.0, "ok")]] * 3


def test_a_hang_takes_no_longer_than_preflight_reckons_with(start: Start) -> None:
    process = start("hangs", call_s=1.0, row_s=0.7)
    process.score(request("fine"))  # it is running
    started = time.monotonic()
    parts, _ = process.score(request(*["bad"] * 30))  # a deadline each would be 21 s
    restarts_s = 3 * 2.0
    assert time.monotonic() - started < longest_s(1.0, 0.7) + restarts_s
    assert [part.outcome for part in parts] == ["timeout"] * 30
    assert "not tried" in parts[-1].detail


def test_what_a_failed_coroutine_began_does_not_go_on_in_its_retries(start: Start) -> None:
    parts, _ = start("asks").score(request("bad", "a", "b"))
    assert outcomes(parts) == [(None, "error"), (1.0, "ok"), (2.0, "ok")]  # asked once each, one after the other


def test_a_restart_that_fails_is_a_failed_call(start: Start, tmp_path: Path) -> None:
    process = start("dies")
    assert outcomes(process.score(request("a"))[0]) == [(1.0, "ok")]
    (tmp_path / "functions.py").write_text("import os\nos._exit(9)\n")
    parts, _ = process.score(request("bad"))
    assert [part.outcome for part in parts] == ["error"]
