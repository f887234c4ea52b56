"""Running a coroutine so that Ctrl-C, SIGTERM and a lost terminal end it in order: cancelled, its workers stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from importlib.machinery import ExtensionFileLoader
from types import FrameType
from typing import Any, TypeVar

from rlsys.runtime.processes import ENDING_SIGNALS

T = TypeVar("T")
RENEW_S = 0.5  # between two times that a notebook's cell sets its handlers
AGAIN_S = 0.05  # after which a signal is sent again that came at a wrong moment


def raise_interrupt(number: int, frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt, as the handler of a signal; where that would be no interruption, send it again.

    While an extension module is loaded, some take it for another failure, and C++ that does not expect it aborts the
    process. Python ignores it in callbacks of weak references, as importlib has.
    """
    if not _is_importlib(frame) and not _is_loading_extension(frame):
        raise KeyboardInterrupt
    again = threading.Timer(AGAIN_S, os.kill, (os.getpid(), number))
    again.daemon = True
    again.start()


def _is_importlib(frame: FrameType | None) -> bool:
    return frame is not None and frame.f_code.co_filename.startswith("<frozen importlib")


def _is_loading_extension(frame: FrameType | None) -> bool:
    while frame is not None:
        # Its variables only after its file: reading them copies them.
        if _is_importlib(frame) and isinstance(frame.f_locals.get("self"), ExtensionFileLoader):
            return True
        frame = frame.f_back
    return False


def run_until_interrupted(main: Coroutine[Any, Any, T]) -> T:
    """Run `main` in an event loop of its own; the first signal of `ENDING_SIGNALS` cancels it.

    A notebook's cell, which runs inside an event loop already, waits for a thread that has this one.

    Raises:
        KeyboardInterrupt: A signal cancelled `main`. A second signal raises it at once, wherever the loop is; in a
            notebook the cell still waits for the workers' end.
    """
    if _is_in_loop():
        return _run_in_thread(main)
    with asyncio.Runner() as runner:
        loop = runner.get_loop()
        task = loop.create_task(main)
        with _signals_cancel(loop, task):
            return loop.run_until_complete(task)


def _is_in_loop() -> bool:
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _run_in_thread(main: Coroutine[Any, Any, T]) -> T:
    started: Future[tuple[asyncio.AbstractEventLoop, asyncio.Task[T]]] = Future()

    def work() -> T:
        with asyncio.Runner() as runner:
            try:
                loop = runner.get_loop()
                task = loop.create_task(main)
            except BaseException as error:
                started.set_exception(error)
                raise
            started.set_result((loop, task))
            return loop.run_until_complete(task)

    # Leaving the pool waits for the thread, so that the workers are stopped before the cell ends.
    with ThreadPoolExecutor(1, thread_name_prefix="run") as pool:
        done = pool.submit(work)
        loop, task = started.result()
        try:
            with _signals_cancel(loop, task) as renew:
                return _result_of(done, renew)
        except KeyboardInterrupt:
            if not done.done():  # it came before the handlers were there, or is the second one
                loop.call_soon_threadsafe(task.cancel)
            raise


def _result_of(done: Future[T], renew: Callable[[], None]) -> T:
    """Wait for a thread's result, and set the handlers of signals again and again.

    Ray, which that thread starts, replaces the one of SIGTERM in C, and only the main thread can put it back.
    """
    while not wait([done], timeout=RENEW_S).done:
        renew()
    return done.result()


@contextmanager
def _signals_cancel(loop: asyncio.AbstractEventLoop, task: asyncio.Task[Any]) -> Iterator[Callable[[], None]]:
    """Let the first signal cancel the task; what the block raises because of it becomes a KeyboardInterrupt.

    The block gets a function that sets the handlers again.
    """
    received: list[int] = []

    def interrupt(number: int, frame: FrameType | None) -> None:
        received.append(number)
        if len(received) > 1:
            raise_interrupt(number, frame)
        # Also wakes the loop; not `loop.add_signal_handler`, which would take the wake-up descriptor that the
        # guardian of the run's processes listens on.
        loop.call_soon_threadsafe(task.cancel)

    is_main_thread = threading.current_thread() is threading.main_thread()
    # A signal that is ignored stays so: SIGINT of a job in a shell's background, SIGHUP under `nohup`.
    handled = [n for n in ENDING_SIGNALS if signal.getsignal(n) is not signal.SIG_IGN]
    before = {number: signal.signal(number, interrupt) for number in handled if is_main_thread}

    def renew() -> None:
        for number in before:
            signal.signal(number, interrupt)

    try:
        yield renew
    except asyncio.CancelledError:
        if received:
            raise KeyboardInterrupt from None
        raise
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
