"""A local Ray without processes that a run of its own does not use.

`ray.init` starts a dashboard's server even where it is told not to (for statistics about Ray's use), waits for it, and
starts a monitor of the autoscaler. They took a second of every start, and 200 MB. Ray has no option for it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from ray._private.node import Node


@contextlib.contextmanager
def only_what_a_run_uses(*, with_logs: bool) -> Iterator[None]:
    """Have `ray.init` leave out the dashboard, the autoscaler's monitor and, unless `with_logs`, the log monitor."""

    def no_dashboard(node: Any, **_: Any) -> None:
        node._webui_url = ""  # as without the dashboard's libraries

    left_out: dict[str, Any] = {"start_api_server": no_dashboard, "start_monitor": lambda node: None}
    if not with_logs:  # it copies the output of workers to the driver
        left_out["start_log_monitor"] = lambda node: None
    with patch.multiple(Node, **left_out):
        yield
