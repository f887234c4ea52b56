"""HTTP proxies of the environment, which services on this machine are not behind."""

from __future__ import annotations

import os

LOOPBACK = ("localhost", "127.0.0.1", "::1")


def exempt_loopback() -> None:
    """Add this machine's own addresses to `no_proxy`, for this process and those that it starts.

    `http_proxy` and `https_proxy` are for other machines: a proxy cannot reach a service that listens on 127.0.0.1
    here, and its error names neither the proxy nor the variable.
    """
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    hosts = [host.strip() for host in given.split(",") if host.strip()]
    if "*" not in hosts:
        hosts += [host for host in LOOPBACK if host not in hosts]
    # Both spellings: libraries read either, and some the first that exists.
    os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(hosts)
