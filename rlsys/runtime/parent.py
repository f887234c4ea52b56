"""A child process that ends when the one that started it is gone, however that ended."""

from __future__ import annotations

import os
import threading
import time

POLL_S = 1.0


def exit_with_parent() -> None:
    """End this process when its parent dies: a killed parent cannot say goodbye."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(POLL_S)
        os._exit(1)

    threading.Thread(target=watch, name="exit-with-parent", daemon=True).start()
