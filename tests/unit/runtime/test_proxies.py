"""Services on this machine are reached without the environment's proxy."""

from __future__ import annotations

import os

import pytest

from rlsys.runtime.proxies import exempt_loopback


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({}, "localhost,127.0.0.1,::1"),
        ({"no_proxy": "corp.example, 127.0.0.1"}, "corp.example,127.0.0.1,localhost,::1"),
        ({"NO_PROXY": "a"}, "a,localhost,127.0.0.1,::1"),
        ({"no_proxy": "a", "NO_PROXY": "b"}, "a,localhost,127.0.0.1,::1"),
        ({"no_proxy": "*"}, "*"),
    ],
)
def test_loopback_is_added_once(given: dict[str, str], wanted: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.setenv(name, "")
    for name, value in given.items():
        monkeypatch.setenv(name, value)
    exempt_loopback()
    exempt_loopback()
    assert os.environ["no_proxy"] == os.environ["NO_PROXY"] == wanted
