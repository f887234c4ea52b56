"""Collection of the workers' spans for the timeline, once per step, while the training loop continues."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rlsys.errors import DeadlineError, WorkerDiedError
from rlsys.runtime.calls import Calls
from rlsys.runtime.spans import Span

# A call for spans waits behind the worker's work, whose own deadline may be longer.
DEADLINE_S = 600.0

logger = logging.getLogger(__name__)


class SpanSource(Protocol):
    """Workers that record what they do."""

    def begin_take_spans(self) -> dict[str, Any]:
        """Start taking the spans recorded since the last call, by worker."""


class TimelineCollector:
    """The collector of every worker's spans, which it passes to `add(lane, spans)`."""

    def __init__(self, calls: Calls, roles: Sequence[SpanSource], add: Callable[[str, list[Span]], None]) -> None:
        self._calls = calls
        self._roles = roles
        self._add = add
        self._fetching: asyncio.Task[None] | None = None

    def collect(self) -> None:
        """Start fetching spans in the background, unless the previous fetch is still running."""
        if self._fetching is None or self._fetching.done():
            # Called here and not in the task, whose first turn may come when the next step's work is queued already.
            self._fetching = self._calls.background.start(self._fetch(self._begin()))

    async def finish(self) -> None:
        """Fetch all remaining spans and wait for them."""
        if self._fetching is not None:
            await self._fetching
        await self._fetch(self._begin())

    def _begin(self) -> dict[str, Any]:
        return {name: call for role in self._roles for name, call in role.begin_take_spans().items()}

    async def _fetch(self, calls: dict[str, Any]) -> None:
        answers = await asyncio.gather(*(self._spans(name, call) for name, call in calls.items()))
        for name, spans in zip(calls, answers, strict=True):
            self._add(name, spans)

    async def _spans(self, name: str, call: Any) -> list[Span]:
        """Wait for one worker's spans; one that is busy for too long, or gone, has a gap in the timeline."""
        try:
            spans: list[Span] = await self._calls.result(
                call, who=name, what="the timeline", deadline_s=DEADLINE_S, is_work=False
            )
        except (DeadlineError, WorkerDiedError) as error:
            # The run itself may be healthy: who waits for the work hears of it too.
            logger.warning("%s; the spans of this worker are missing until now", error)
            return []
        return spans
