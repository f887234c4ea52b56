"""Which cluster a run joins, and which addresses are none."""

from __future__ import annotations

import pytest

from rlsys.config.cluster_address import cluster_address
from rlsys.config.compose import load_config
from rlsys.config.schema import ClusterConfig
from rlsys.errors import ConfigError
from rlsys.preflight.checks import check_config

VARIABLE = "the environment variable RAY_ADDRESS"


@pytest.mark.parametrize(
    ("option", "variable", "found"),
    [
        (None, None, None),
        (None, "head:6379", ("head:6379", VARIABLE)),
        (None, "local", None),
        (None, "", None),
        ("local", "head:6379", None),
        ("auto", None, ("auto", "cluster.address")),
        ("auto", "head:6379", ("head:6379", VARIABLE)),
        ("other:6379", "head:6379", ("other:6379", "cluster.address")),
        ("local", "http://head:8265", None),
    ],
)
def test_the_option_and_the_variable(
    monkeypatch: pytest.MonkeyPatch, option: str | None, variable: str | None, found: tuple[str, str] | None
) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    if variable is not None:
        monkeypatch.setenv("RAY_ADDRESS", variable)
    assert cluster_address(ClusterConfig(address=option)) == found


def test_the_job_server_s_address_is_refused_before_ray_and_the_advice_works(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "http://127.0.0.1:8265")
    for overrides in ([], ["cluster=running"], ["cluster.address=https://head"]):
        with pytest.raises(ConfigError, match=r"Ray's job server.*cluster=local"):
            check_config(load_config(overrides))
    check_config(load_config(["cluster=local"]))
