"""What keeps a local Ray from starting is named before it is started; whom it lets in is nobody else's affair."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import pytest

from rlsys.config.schema import ClusterConfig
from rlsys.errors import ConfigError
from rlsys.runtime.cluster import (
    AUTHENTICATION,
    CODE_FOLDERS,
    Cluster,
    _code_folders,
    _own_token,
    _signal_handler_kept,
)
from rlsys.runtime.node_checks import MAX_TEMP_DIR, check_temp_dir
from rlsys.runtime.room import Demand


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RAY_TMPDIR", "TMPDIR", *AUTHENTICATION):
        monkeypatch.delenv(name, raising=False)


@pytest.mark.parametrize("variable", ["RAY_TMPDIR", "TMPDIR"])
def test_a_folder_too_long_for_sockets(monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.setenv(variable, "/tmp/" + "x" * (MAX_TEMP_DIR - len("/tmp//ray")))
    check_temp_dir()
    monkeypatch.setenv(variable, "/tmp/" + "x" * (MAX_TEMP_DIR - len("/tmp//ray") + 1))
    with pytest.raises(ConfigError, match=rf"more than {MAX_TEMP_DIR} bytes.*set the environment variable {variable}"):
        check_temp_dir()


def test_the_bound_is_that_of_ray_s_longest_socket() -> None:
    from ray._private.utils import validate_socket_filepath

    socket = "/session_2026-01-02_03-04-05_123456_4194304/sockets/plasma_store"
    validate_socket_filepath("x" * MAX_TEMP_DIR + socket)
    with pytest.raises(OSError, match="AF_UNIX"):
        validate_socket_filepath("x" * (MAX_TEMP_DIR + 1) + socket)


def test_a_folder_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path))
    monkeypatch.setattr("rlsys.runtime.node_checks.MAX_TEMP_DIR", 1000)
    check_temp_dir()
    monkeypatch.setattr(os, "access", lambda *_: False)  # the tests' user may write everywhere
    with pytest.raises(ConfigError, match=rf"no permission for {tmp_path}.*RAY_TMPDIR to a folder of yours"):
        check_temp_dir()
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("RAY_TMPDIR", str(tmp_path / "file"))
    with pytest.raises(ConfigError, match="no permission for"):
        check_temp_dir()


def test_the_token_lives_as_long_as_its_cluster() -> None:
    tokens = []
    for _ in range(2):
        with _own_token():
            tokens.append(os.environ["RAY_AUTH_TOKEN"])
            os.environ["RAY_AUTH_MODE"] = "token"  # as Ray does
        assert not set(AUTHENTICATION) & set(os.environ)
    assert len(set(tokens)) == 2


def test_a_chosen_way_to_authenticate_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    with _own_token():
        assert "RAY_AUTH_TOKEN" not in os.environ
    assert os.environ["RAY_AUTH_MODE"] == "disabled"


def test_the_environment_is_as_before_whatever_fails_at_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise RuntimeError("Ray hangs")

    cluster = Cluster(ClusterConfig())
    cluster._environment.enter_context(_own_token())
    monkeypatch.setattr("rlsys.runtime.cluster.ray.shutdown", fail)
    with pytest.raises(RuntimeError, match="Ray hangs"):
        cluster.close()
    assert "RAY_AUTH_TOKEN" not in os.environ


def test_a_ray_that_does_not_start_leaves_no_handler() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def start() -> None:
        with _signal_handler_kept(signal.SIGTERM):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            raise ConnectionError

    with pytest.raises(ConnectionError):
        start()
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(("share", "hidden"), [(0.0, {"CUDA_VISIBLE_DEVICES": ""}), (0.5, {}), (1.0, {})])
def test_a_worker_without_a_share_of_a_gpu_sees_none(tmp_path: Path, share: float, hidden: dict[str, str]) -> None:
    """With a share Ray sets the variable; without one it would leave the caller's, and so all GPUs."""
    demand = Demand("scoring/0", 1.0, share, {"A": "b"})
    assert Cluster(ClusterConfig())._env(demand) == {"A": "b", CODE_FOLDERS: os.pathsep.join(_code_folders()), **hidden}
    logged = Cluster(ClusterConfig(), tmp_path)._env(demand)
    assert logged.get("CUDA_VISIBLE_DEVICES") == hidden.get("CUDA_VISIBLE_DEVICES")


def test_the_folders_that_ray_puts_first_but_not_those_that_the_user_does(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    here, script = tmp_path / "here", tmp_path / "script"
    for folder in (here, script):
        folder.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr("sys.argv", [str(script / "run.py")])
    monkeypatch.setenv("PYTHONPATH", "")
    monkeypatch.setattr(sys.modules["__main__"], "__file__", "run.py", raising=False)
    assert _code_folders() == [str(here)]  # as `python -m` does it
    monkeypatch.syspath_prepend(script)
    assert _code_folders() == [str(here), str(script)]
    monkeypatch.setenv("PYTHONPATH", f"/other:{here}")
    assert _code_folders() == [str(script)]
