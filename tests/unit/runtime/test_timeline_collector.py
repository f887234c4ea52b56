"""The timeline's spans are collected beside the run, and never end it by being late; calls are coroutines here."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from rlsys.errors import WorkerDiedError
from rlsys.runtime.calls import Calls
from rlsys.runtime.spans import Span
from rlsys.runtime.timeline_collector import DEADLINE_S, TimelineCollector
from tests.unit.virtual_time import run_virtual


class Workers:
    """Two workers; `learner/0` answers after `busy_s` seconds."""

    def __init__(self, busy_s: float, error: Exception | None = None) -> None:
        self.num_calls = 0
        self._busy_s = busy_s
        self._error = error

    def begin_take_spans(self) -> dict[str, Any]:
        self.num_calls += 1
        return {"scoring/0": self._answer(0.0), "learner/0": self._answer(self._busy_s)}

    async def _answer(self, after_s: float) -> list[Span]:
        await asyncio.sleep(after_s)
        if self._error is not None:
            raise self._error
        return [("work", float(self.num_calls), after_s)]


def test_a_worker_that_is_busy_for_too_long_only_leaves_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    workers, added = Workers(DEADLINE_S * 2), []
    collector = TimelineCollector(Calls(), [workers], lambda name, spans: added.append((name, spans)))
    run_virtual(collector.finish())
    assert added == [("scoring/0", [("work", 1.0, 0.0)]), ("learner/0", [])]
    assert "the timeline: no answer within 600 s from learner/0" in caplog.text


def test_a_call_goes_out_at_once_and_only_one_at_a_time() -> None:
    async def main() -> None:
        workers, added = Workers(5.0), []
        collector = TimelineCollector(Calls(), [workers], lambda name, spans: added.append(name))
        collector.collect()
        assert workers.num_calls == 1  # before the loop has had a turn
        collector.collect()
        assert workers.num_calls == 1
        await collector.finish()
        assert workers.num_calls == 2
        assert added == ["scoring/0", "learner/0"] * 2

    run_virtual(main())


def test_a_dead_worker_has_a_gap(caplog: pytest.LogCaptureFixture) -> None:
    """Whether the run can go on without it, those who wait for its work decide."""
    workers = Workers(1.0, WorkerDiedError("learner/0 is gone"))
    added: list[tuple[str, Any]] = []
    collector = TimelineCollector(Calls(), [workers], lambda name, spans: added.append((name, spans)))
    run_virtual(collector.finish())
    assert sorted(added) == [("learner/0", []), ("scoring/0", [])]
    assert "learner/0 is gone; the spans of this worker are missing until now" in caplog.text
