"""From the workers to the timeline: fetched once per step, without the training loop waiting for it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from rlsys.runtime.calls import Calls
from rlsys.runtime.spans import Span

DEADLINE_S = 600.0


class Role(Protocol):
    """Workers that record what they do."""

    def begin_take_spans(self) -> dict[str, Any]: ...


class TimelineCollector:
    """Hands every worker's spans to `add(lane, spans)`."""

    def __init__(self, calls: Calls, roles: Sequence[Role], add: Callable[[str, list[Span]], None]) -> None:
        self._calls = calls
        self._roles = roles
        self._add = add
        self._fetching: asyncio.Task[None] | None = None

    def collect(self) -> None:
        """Fetch what there is in the background, unless the last fetch is still under way."""
        if self._fetching is None or self._fetching.done():
            self._fetching = self._calls.background.start(self._fetch())

    async def finish(self) -> None:
        """Fetch everything until now, and wait for it."""
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
