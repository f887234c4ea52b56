"""A local Ray without what a run of its own does not use: processes, and ports that other machines can reach.

`ray.init` starts a dashboard's server even where it is told not to (for statistics about Ray's use), waits for it, and
starts a monitor of the autoscaler. They took a second of every start, and 200 MB. Every process of Ray listens on all
network interfaces, unless its node's address is that of loopback. Ray has no option for either.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any
from unittest.mock import patch

from ray._private import ray_constants
from ray._private.node import Node


@contextlib.contextmanager
def only_what_a_run_uses(*, with_logs: bool) -> Iterator[None]:
    """Have `ray.init` leave out the dashboard, the autoscaler's monitor and, unless `with_logs`, the log monitor.

    The node's address is 127.0.0.1.
    """

    def no_dashboard(node: Any, **_: Any) -> None:
        node._webui_url = ""  # as without the dashboard's libraries

    left_out: dict[str, Any] = {"start_api_server": no_dashboard, "start_monitor": lambda node: None}
    if not with_logs:  # it copies the output of workers to the driver
        left_out["start_log_monitor"] = lambda node: None
    # Where Ray makes no clusters (macOS, Windows), it takes loopback. `_node_ip_address="127.0.0.1"` does not help: Ray
    # turns it into an address that others can reach.
    with patch.multiple(Node, **left_out), patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False):
        yield
