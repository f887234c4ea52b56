"""Interchangeable workers with one call each at a time; what waits goes together to whoever is idle."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

from rlsys.runtime.balance import balance
from rlsys.runtime.calls import Calls

T = TypeVar("T")


class Stage(Generic[T]):
    """Batches form by themselves: the busier the workers, the more waits for the next call.

    Args:
        names: of the workers, for errors.
        begin: starts a call on a worker (by index) for some items; returns its reference, and anything else that
            `done` is to have.
        done: takes the items, the call's value, and that.
        weight: what an item costs; idle workers get nearly equal shares.
    """

    def __init__(
        self,
        calls: Calls,
        names: Sequence[str],
        begin: Callable[[int, list[T]], tuple[Any, Any]],
        done: Callable[[list[T], Any, Any], None],
        *,
        weight: Callable[[T], int],
        what: str,
        deadline_s: float,
    ) -> None:
        self._calls = calls
        self._names = names
        self._begin = begin
        self._done = done
        self._weight = weight
        self._what = what
        self._deadline_s = deadline_s
        self._waiting: list[T] = []
        self._idle = set(range(len(names)))

    @property
    def is_idle(self) -> bool:
        """Nothing waits and nobody works."""
        return not self._waiting and len(self._idle) == len(self._names)

    @property
    def num_waiting(self) -> int:
        return len(self._waiting)

    def put(self, items: Sequence[T]) -> None:
        """Take more items; they start now if a worker is idle."""
        self._waiting += items
        self._dispatch()

    def _dispatch(self) -> None:
        if not self._waiting or not self._idle:
            return
        items, self._waiting = self._waiting, []
        shares = balance([self._weight(item) for item in items], len(self._idle))
        for worker, share in zip(sorted(self._idle), shares, strict=True):
            if share:
                self._start(worker, [items[index] for index in sorted(share)])

    def _start(self, worker: int, items: list[T]) -> None:
        def end(value: Any) -> None:
            self._idle.add(worker)
            self._done(items, value, extra)
            self._dispatch()

        self._idle.discard(worker)
        call, extra = self._begin(worker, items)
        self._calls.start(call, who=self._names[worker], what=self._what, deadline_s=self._deadline_s, done=end)
