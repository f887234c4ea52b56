"""The store of a group listens where the group is, and gloo takes the way that leads there."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from datetime import timedelta

import psutil
import pytest

from rlsys.runtime.meeting import meeting_store

TIMEOUT = timedelta(seconds=20)


@pytest.fixture(autouse=True)
def no_interface(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("GLOO_SOCKET_IFNAME", raising=False)
    yield
    os.environ.pop("GLOO_SOCKET_IFNAME", None)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("", 0))
        return int(listener.getsockname()[1])


def addresses(port: int) -> set[str]:
    """Where this process listens on the port."""
    listening = (one for one in psutil.Process().net_connections("tcp") if one.status == psutil.CONN_LISTEN)
    return {one.laddr.ip for one in listening if one.laddr.port == port}


@pytest.mark.parametrize("wait", [True, False])
def test_it_listens_on_its_host_alone_and_works(wait: bool) -> None:
    port = free_port()
    master = meeting_store("127.0.0.1", port, 1, is_master=True, timeout=TIMEOUT, wait_for_workers=wait)
    assert addresses(port) == {"127.0.0.1"}
    other = meeting_store("127.0.0.1", port, 1, is_master=False, timeout=TIMEOUT, wait_for_workers=False)
    other.set("key", "value")
    assert master.get("key") == b"value"
    del master, other
    assert addresses(port) == set()


def test_gloo_takes_the_interface_that_leads_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """Not that of the machine's name, which may be a loopback address."""
    interfaces = psutil.net_if_addrs().items()
    found = [(name, one.address) for name, all_of in interfaces for one in all_of if one.family == socket.AF_INET]
    assert ("lo", "127.0.0.1") in found
    for name, address in found:
        os.environ.pop("GLOO_SOCKET_IFNAME", None)
        meeting_store(address, free_port(), 1, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
        assert os.environ["GLOO_SOCKET_IFNAME"] == name
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "chosen")
    meeting_store("127.0.0.1", free_port(), 1, is_master=True, timeout=TIMEOUT, wait_for_workers=False)
    assert os.environ["GLOO_SOCKET_IFNAME"] == "chosen"
