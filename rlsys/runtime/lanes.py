"""From workers to the timeline: asked once a step, and never waited for while the run goes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Protocol

from rlsys.runtime.calls import Calls
from rlsys.runtime.spans import Span

DEADLINE_S = 600.0


class Role(Protocol):
    """Workers that measure what they do."""

    def begin_take_spans(self) -> dict[str, Any]: ...


class Lanes:
    """Hands every worker's spans to `add(lane, spans)`."""

    def __init__(self, calls: Calls, roles: Sequence[Role], add: Callable[[str, list[Span]], None]) -> None:
        self._calls = calls
        self._roles = roles
        self._add = add
        self._asked = 0

    def ask(self) -> None:
        """Fetch what is there, unless the answers to the last question are still on their way."""
        if self._asked == 0:
            for role in self._roles:
                for name, call in role.begin_take_spans().items():
                    self._asked += 1
                    done = partial(self._answered, name)
                    what = "the timeline"
                    self._calls.start(call, who=name, what=what, deadline_s=DEADLINE_S, done=done, is_work=False)

    def finish(self) -> None:
        """Everything until now."""
        self._settle()
        self.ask()
        self._settle()

    def _settle(self) -> None:
        self._calls.until(
            lambda: self._asked == 0, deadline_s=DEADLINE_S, late=lambda: "the timeline: some worker does not answer"
        )

    def _answered(self, name: str, spans: list[Span]) -> None:
        self._asked -= 1
        self._add(name, spans)
