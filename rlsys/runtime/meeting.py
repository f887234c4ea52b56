"""The store where the processes of a group meet, on the network interface between them and on no other."""

from __future__ import annotations

import os
import socket
from datetime import timedelta

import psutil
import torch.distributed as dist


def meeting_store(
    host: str, port: int, world_size: int, *, is_master: bool, timeout: timedelta, wait_for_workers: bool = True
) -> dist.TCPStore:
    """Open the store of a group; its master listens on `host` alone, where PyTorch by itself takes every interface.

    Anyone who reaches the store can read and change what the group agrees on. From now on gloo uses the interface that
    leads to `host`, in this whole process.

    Args:
        host: address of the master.
        port: port of the master.
        world_size: number of processes in the group.
        is_master: whether this process is the master.
        timeout: for joining, and for each later operation of the store.
        wait_for_workers: whether to return only once all have joined.
    """
    _choose_interface(host, port)
    if not is_master:
        return dist.TCPStore(host, port, world_size, False, timeout, wait_for_workers)
    family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
    listener = socket.socket(family, kind, protocol)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    listener.bind(address)
    listener.listen()
    # The store owns the socket from here on.
    return dist.TCPStore(host, port, world_size, True, timeout, wait_for_workers, master_listen_fd=listener.detach())


def _choose_interface(host: str, port: int) -> None:
    """Let gloo use the interface that leads to `host`, unless the user has chosen one.

    By itself gloo takes the address of the machine's name, which is often a loopback address (127.0.1.1 on Debian) that
    other machines cannot reach.
    """
    family, _, _, _, target = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, socket.SOCK_DGRAM) as probe:
        probe.connect(target)  # sends nothing, and binds the socket to the address that it would send from
        address = probe.getsockname()[0]
    for name, addresses in psutil.net_if_addrs().items():
        if any(one.address == address for one in addresses):
            os.environ.setdefault("GLOO_SOCKET_IFNAME", name)
