"""Collection of the workers' spans for the timeline, once per step, while the training loop continues."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rlsys.runtime.calls import Calls
from rlsys.runtime.spans import Span

DEADLINE_S = 600.0


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
            self._fetching = self._calls.background.start(self._fetch())

    async def finish(self) -> None:
        """Fetch all remaining spans and wait for them."""
        if self._fetching is not None:
            await self._fetching
        await self._fetch()

    async def _fetch(self) -> None:
        calls = {name: call for role in self._roles for name, call in role.begin_take_spans().items()}
        answers = await asyncio.gather(
            *(
                self._calls.result(call, who=name, what="the timeline", deadline_s=DEADLINE_S, is_work=False)
                for name, call in calls.items()
            )
        )
        for name, spans in zip(calls, answers, strict=True):
            self._add(name, spans)
