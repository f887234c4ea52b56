"""Threads for calls that may never return: the end of the process does not wait for them."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any


class DaemonThreads(Executor):
    """Runs every call in a daemon thread of its own; whoever waits for it sets the deadline."""

    def __init__(self, name: str) -> None:
        """Give all threads one name."""
        self._name = name

    def submit(self, function: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Begin a call; its result, or what it raises, is the future's."""
        done: Future[Any] = Future()
        done.set_running_or_notify_cancel()  # it cannot be taken back any more

        def work() -> None:
            try:
                done.set_result(function(*args, **kwargs))
            except BaseException as error:
                done.set_exception(error)

        threading.Thread(target=work, name=self._name, daemon=True).start()
        return done
