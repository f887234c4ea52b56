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
        ("auto", "", ("auto", "cluster.address")),
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


@pytest.mark.parametrize(
    ("address", "server"),
    [
        ("http://127.0.0.1:8265", "Ray's job server"),
        ("https://head", "Ray's job server"),
        ("ray://head:10001", "Ray Client"),
    ],
)
def test_an_address_where_no_run_can_join_is_refused_before_ray_and_the_advice_works(
    monkeypatch: pytest.MonkeyPatch, address: str, server: str
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", address)
    for overrides in ([], ["cluster=running"], [f"cluster.address={address}"]):
        with pytest.raises(ConfigError, match=rf"{server}.*cluster=local"):
            check_config(load_config(overrides))
    check_config(load_config(["cluster=local"]))


def test_a_running_cluster_is_not_quietly_a_local_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "local")
    with pytest.raises(ConfigError, match="the environment variable RAY_ADDRESS is 'local': unset"):
        check_config(load_config(["cluster=running"]))
    check_config(load_config([]))
