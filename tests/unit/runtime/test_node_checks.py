"""Checks of a machine that has what is wrong with it, and what a person is told."""

from __future__ import annotations

import os
import resource
import socket
from collections import namedtuple
from pathlib import Path

import pytest

from rlsys.errors import ConfigError
from rlsys.runtime import node_checks
from rlsys.runtime.findings import Finding, Level, found_by, report
from rlsys.runtime.limits import Limits

Usage = namedtuple("Usage", "total used free")


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", "http_proxy", "https_proxy", "all_proxy", "no_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_every_check_has_a_result_here() -> None:
    findings = node_checks.node_findings(starts_ray=True)
    assert len({finding.name for finding in findings}) == len(findings) == 10
    assert all(finding.found for finding in findings)
    assert all(finding.remedy for finding in findings if finding.level in (Level.WARN, Level.FAIL))


def test_where_ray_runs_already_its_folder_is_not_this_process_s_choice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 100)
    failed = [finding.name for finding in node_checks.node_findings(starts_ray=True) if finding.level == Level.FAIL]
    assert failed == ["Ray's folder"]
    assert all(finding.level != Level.FAIL for finding in node_checks.node_findings(starts_ray=False))


def test_the_limits_of_a_container_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_checks.Limits, "here", lambda: Limits(1.5, 64, 2 * 10**9, 10**9, 512 * 10**9))
    assert node_checks.cpus().found == "1.5 cores of the machine's 64"
    expected = "1.0 GB free of 2.0 (the limit of a control group; the machine has 512.0)"
    assert node_checks.memory().found == expected
    monkeypatch.setattr(node_checks.Limits, "here", lambda: Limits(64, 64, 2 * 10**9, 10**9, 2 * 10**9))
    assert node_checks.cpus().found == "64 cores"
    assert node_checks.memory().found == "1.0 GB free of 2.0"


def test_shared_memory_of_a_container(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(node_checks.shutil, "disk_usage", lambda _: Usage(64 * 2**20, 0, 64 * 2**20))
    finding = node_checks.shared_memory(tmp_path)
    assert finding.level == Level.WARN
    assert "--shm-size" in finding.remedy
    monkeypatch.setattr(node_checks.shutil, "disk_usage", lambda _: Usage(2**31, 0, 2**31))
    assert node_checks.shared_memory(tmp_path).level == Level.OK
    assert node_checks.shared_memory(tmp_path / "none").level == Level.WARN


def test_a_folder_of_ray_that_is_another_user_s(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(node_checks, "MAX_TEMP_DIR", 1000)
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    (tmp_path / "ray").mkdir()
    assert node_checks.temp_dir().level == Level.OK
    monkeypatch.setattr(os, "getuid", lambda: 4711)
    monkeypatch.setattr(node_checks.Path, "stat", lambda _: os.stat_result((0o40777, 0, 0, 0, 815, 0, 0, 0, 0, 0)))
    finding = node_checks.temp_dir()
    assert (finding.level, "the user 815" in finding.found) == (Level.WARN, True)
    assert "RAY_TMPDIR" in finding.remedy


def test_a_folder_of_ray_with_too_long_a_name_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TMPDIR", "/tmp/" + "x" * 100)
    finding = node_checks.temp_dir()
    assert finding.level == Level.FAIL
    assert "set the environment variable TMPDIR" in finding.found


@pytest.mark.parametrize(
    ("usage", "level"), [(Usage(10**12, 10**11, 9 * 10**11), "ok"), (Usage(10**10, 1, 10**9), "warn")]
)
def test_disks(monkeypatch: pytest.MonkeyPatch, usage: Usage, level: str) -> None:
    monkeypatch.setattr(node_checks.shutil, "disk_usage", lambda _: usage)
    assert node_checks.temp_disk().level == level


def test_a_nearly_full_disk_is_doubtful_however_large_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(node_checks.shutil, "disk_usage", lambda _: Usage(10**13, 96 * 10**11, 4 * 10**11))
    assert node_checks.temp_disk().level == Level.WARN


def test_a_port_that_cannot_be_had(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(99, "Cannot assign requested address")

    monkeypatch.setattr(socket.socket, "bind", refuse)
    finding = node_checks.loopback_port()
    assert (finding.level, "Cannot assign" in finding.found) == (Level.FAIL, True)


@pytest.mark.parametrize(("soft", "hard", "level", "remedy"), [
    (100, 100, Level.FAIL, "raise the hard limit (it is 100), then ulimit -n 1024"),
    (512, 4096, Level.WARN, "ulimit -n 1024 in the shell"),
    (4096, 4096, Level.OK, ""),
    (resource.RLIM_INFINITY, resource.RLIM_INFINITY, Level.OK, ""),
])  # fmt: skip
def test_open_files(monkeypatch: pytest.MonkeyPatch, soft: int, hard: int, level: Level, remedy: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (soft, hard))
    finding = node_checks.open_files()
    assert finding.level == level
    assert finding.remedy.startswith(remedy)


def test_threads_count_what_the_user_has_already(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (2000, 2000))
    monkeypatch.setattr(node_checks, "process_limit", lambda: None)
    monkeypatch.setattr(node_checks, "_own_threads", lambda: 1900)
    monkeypatch.setattr(os, "getuid", lambda: 0)
    assert node_checks.threads().level == Level.OK  # root has no limit
    monkeypatch.setattr(os, "getuid", lambda: 1000)
    assert node_checks.threads().level == Level.FAIL
    monkeypatch.setattr(node_checks, "_own_threads", lambda: 100)
    assert node_checks.threads().level == Level.OK
    monkeypatch.setattr(node_checks, "process_limit", lambda: 400)  # a container's
    assert node_checks.threads().level == Level.WARN


def test_a_home_or_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in node_checks.CACHES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "new" / "folder"))
    assert node_checks.home().level == Level.OK
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "file"))
    finding = node_checks.home()
    assert (finding.level, finding.remedy) == (Level.WARN, "set HF_HOME to a folder of yours")
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests' user may write everywhere
    assert node_checks.home().remedy == "set HOME and HF_HOME to a folder of yours"


def test_proxies(monkeypatch: pytest.MonkeyPatch) -> None:
    assert node_checks.proxies().found == "none"
    monkeypatch.setenv("HTTPS_PROXY", "http://proxy:1")
    finding = node_checks.proxies()
    assert finding.level == Level.NOTE
    assert finding.found.startswith("https_proxy also for localhost, 127.0.0.1, ::1;")
    monkeypatch.setenv("no_proxy", "localhost, 127.0.0.1,::1")
    assert node_checks.proxies().level == Level.OK
    monkeypatch.setenv("no_proxy", "*")
    assert node_checks.proxies().level == Level.OK


def test_a_failing_check_refuses_and_a_doubtful_one_warns(caplog: pytest.LogCaptureFixture) -> None:
    good, doubtful = Finding("a", Level.OK, "fine"), Finding("b", Level.WARN, "half", "do this")
    report([good, Finding("n", Level.NOTE, "so"), doubtful])
    assert caplog.messages == ["b: half: do this"]
    with pytest.raises(ConfigError, match=r"^c: broken: mend it\nd: gone$"):
        report([Finding("c", Level.FAIL, "broken", "mend it"), good, Finding("d", Level.FAIL, "gone")])


def test_a_check_that_raises_is_a_finding() -> None:
    def refuse() -> str:
        raise ConfigError("no")

    assert found_by("x", refuse) == Finding("x", Level.FAIL, "no")
    assert found_by("x", lambda: "yes") == Finding("x", Level.OK, "yes")
