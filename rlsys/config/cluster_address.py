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
        ConfigError: it is the address of the job server, which takes jobs and no drivers.
    """
    given, in_environment = config.address, os.environ.get(RAY_ADDRESS)
    # As Ray does: its variable also decides which cluster `auto` is.
    from_environment = in_environment is not None and given in (None, "auto")
    address = in_environment if from_environment else given
    source = f"the environment variable {RAY_ADDRESS}" if from_environment else "cluster.address"
    if address in (None, "", LOCAL):
        return None
    if address.startswith(("http://", "https://")):
        raise ConfigError(
            f"{source} is '{address}', the address of Ray's job server, which launch/ray_job.sh and `ray job submit` "
            "use: give the address of the head, as HOST:6379, or start a Ray of the run's own with cluster=local"
        )
    return address, source
