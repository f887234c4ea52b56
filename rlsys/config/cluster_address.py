"""The Ray cluster that a run joins, from `cluster.address` and Ray's own environment variable."""

from __future__ import annotations

import os

from rlsys.config.schema import ClusterConfig
from rlsys.errors import ConfigError

RAY_ADDRESS = "RAY_ADDRESS"
LOCAL = "local"


def cluster_address(config: ClusterConfig) -> tuple[str, str] | None:
    """Return the address of the cluster to join and where it was given, or None for a Ray of the run's own.

    Raises:
        ConfigError: it is the address of the job server or of Ray Client, where no driver can join; or the cluster
            that runs is asked for, and the variable says local.
    """
    given, in_environment = config.address, os.environ.get(RAY_ADDRESS)
    # As Ray does: its variable, unless it is empty, also decides which cluster `auto` is.
    from_environment = bool(in_environment) and given in (None, "auto")
    if given == "auto" and in_environment == LOCAL:
        raise ConfigError(
            f"cluster.address=auto asks for the cluster that runs, and the environment variable {RAY_ADDRESS} is "
            "'local': unset the variable, or start a Ray of the run's own with cluster=local"
        )
    address = in_environment if from_environment else given
    source = f"the environment variable {RAY_ADDRESS}" if from_environment else "cluster.address"
    if address in (None, "", LOCAL):
        return None
    if "://" in address:
        server = "Ray Client" if address.startswith("ray://") else "Ray's job server"
        raise ConfigError(
            f"{source} is '{address}', an address of {server}, at which no run can join the cluster "
            "(launch/ray_job.sh submits one to the job server): give the address of the head, as HOST:6379, or start "
            "a Ray of the run's own with cluster=local"
        )
    return address, source
