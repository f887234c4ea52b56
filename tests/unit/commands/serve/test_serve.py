"""The reward service itself, in a process of its own."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest
import uvicorn
from fastapi.testclient import TestClient

from rlsys.commands.serve import connections
from rlsys.commands.serve.app import Processes, build_app
from rlsys.commands.serve.command import _options, check_token, is_loopback
from rlsys.commands.serve.connections import MAX_BODY
from rlsys.errors import ConfigError
from rlsys.rewards import Failed
from rlsys.rewards.entry import bind_reward
from rlsys.scoring.call import RewardLog, RewardRequest, call_reward
from tests.planted import plant, planted_that_ran

FUNCTIONS = """
import time

def picky(completions, answer, log_metric, *, scale=1.0, **_):
    if "hang" in completions:
        time.sleep(60)
    if "raise" in completions:
        raise ValueError("cannot score this")
    log_metric("rows", len(completions))
    return [None if a is None else scale * len(c) for c, a in zip(completions, answer)]
"""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, psutil.Process]]:
    """A service with a token and a short deadline."""
    folder = tmp_path_factory.mktemp("service")
    (folder / "functions.py").write_text(FUNCTIONS)
    plant(folder)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "rlsys.cli", "serve-reward", "functions.py:picky", "scale=2.0"]
    command += ["--port", str(port), "--token-env", "SERVICE_TOKEN", "--deadline", "16", "--processes", "2"]
    process = subprocess.Popen(command, cwd=folder, env={**os.environ, "SERVICE_TOKEN": "secret"})
    base = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 60
    while not _answers(base):
        assert process.poll() is None
        assert time.monotonic() < deadline
        time.sleep(0.1)
    yield base, psutil.Process(process.pid)
    assert planted_that_ran(folder) == []  # neither in the service nor in the function's processes
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=20) is not None


@pytest.fixture(scope="module")
def url(service: tuple[str, psutil.Process]) -> str:
    return service[0]


def _answers(base: str) -> bool:
    try:
        return httpx.get(f"{base}/health").json() == {"status": "ok"}
    except httpx.TransportError:
        return False


def request(*completions: str) -> RewardRequest:
    count = len(completions)
    columns = {"answer": [None if text == "skip" else "x" for text in completions]}
    return RewardRequest(["p"] * count, completions, [[1]] * count, columns, 1)


def test_a_client_and_the_service_together(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "secret")
    function = bind_reward({"name": "http", "url": f"{url}/score", "token_env": "SERVICE_TOKEN"})
    assert call_reward(function, request("a", "skip", "abc"), RewardLog()) == [2.0, None, 6.0]
    bad = call_reward(function, request("a", "raise", "abc"), RewardLog())
    assert [bad[0], bad[2]] == [2.0, 6.0]
    assert isinstance(bad[1], Failed)
    assert "cannot score this" in bad[1].detail


def test_a_call_past_its_deadline_is_killed_and_the_service_lives(url: str) -> None:
    headers = {"Authorization": "Bearer secret"}
    body = {"prompts": ["p", "p"], "completions": ["hang", "ab"], "columns": {"answer": ["x", "x"]}}
    started = time.monotonic()
    answer = httpx.post(f"{url}/score", json=body, headers=headers, timeout=60).json()
    assert time.monotonic() - started < 30  # the function sleeps for 60 s
    assert [entry["outcome"] for entry in answer["rewards"]] == ["timeout", "ok"]
    body = {"prompts": ["p"], "completions": ["abcd"], "columns": {"answer": ["x"]}}
    answer = httpx.post(f"{url}/score", json=body, headers=headers, timeout=60).json()
    assert answer["rewards"] == [{"value": 8.0, "outcome": "ok", "detail": ""}]
    assert answer["metrics"] == {"rows": 1.0}


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic secret"}])
def test_without_the_token_nothing_is_scored(url: str, headers: dict[str, str]) -> None:
    body = {"prompts": ["p"], "completions": ["a"], "columns": {"answer": ["x"]}}
    assert httpx.post(f"{url}/score", json=body, headers=headers).status_code == 401


def test_without_the_token_no_body_is_read(service: tuple[str, psutil.Process]) -> None:
    """The answer is there before the body, and a body that is sent nevertheless takes no memory."""
    address, before = httpx.URL(service[0]), service[1].memory_info().rss
    with socket.create_connection((address.host, address.port or 0), timeout=30) as client:
        client.sendall(b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 60000000\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 401 ")
        with pytest.raises(OSError):  # the service has closed the connection
            client.sendall(bytes(57 * 2**20))
    assert service[1].memory_info().rss - before < 8 * 2**20


@pytest.mark.parametrize("is_announced", [True, False])
def test_a_body_beyond_the_limit_is_refused(url: str, is_announced: bool) -> None:
    header = f"Content-Length: {MAX_BODY + 1}" if is_announced else "Transfer-Encoding: chunked"
    address, answer = httpx.URL(url), b""
    with socket.create_connection((address.host, address.port or 0), timeout=30) as client:
        client.sendall(f"POST /score HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer secret\r\n{header}\r\n\r\n".encode())
        chunk = b"100000\r\n" + bytes(2**20) + b"\r\n"
        with contextlib.suppress(ConnectionError):  # the end of the connection, once the answer is there
            for _ in range(0 if is_announced else MAX_BODY // 2**20 + 1):
                client.sendall(chunk)
        with contextlib.suppress(ConnectionError):
            answer = client.recv(1000)
    # A service that closes while more is arriving may take the answer back.
    assert answer.startswith(b"HTTP/1.1 413 ") or (not answer and not is_announced)


def test_all_bodies_together_are_bounded(slow: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "BODY_S", 30.0)
    monkeypatch.setattr(connections, "MAX_BODIES", 5000)
    head = b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 3000\r\n\r\n"
    with socket.create_connection(("127.0.0.1", slow), timeout=30) as first:
        first.sendall(head + bytes(2500))
        time.sleep(0.2)
        with socket.create_connection(("127.0.0.1", slow), timeout=30) as second:
            second.sendall(head + bytes(2600))
            assert b" 503 " in second.recv(1000)
    time.sleep(0.2)  # the first has given up: there is room again
    with socket.create_connection(("127.0.0.1", slow), timeout=30) as third:
        third.sendall(head + bytes(3000))
        assert b" 422 " in third.recv(1000)


def test_options_name_secrets_by_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", "hunter2")
    assert _options(["token=${oc.env:PW}", "scale=2"]) == {"token": "hunter2", "scale": 2}
    with pytest.raises(ConfigError, match="NONE"):
        _options(["token=${oc.env:NONE}"])


STARTS = {
    "nothing": [b""],
    "half of the headers": [b"POST /score HTTP/1.1\r\nHo"],
    "half of the body": [b"POST /score HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{"],
    "half of another request": [b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n", b"GET /hea"],
}


@pytest.mark.parametrize("start", STARTS)
def test_slow_clients_are_cut_off(slow: int, start: str) -> None:
    with socket.create_connection(("127.0.0.1", slow), timeout=30) as client:
        *whole, half = STARTS[start]
        for request in whole:
            client.sendall(request)
            assert b" 200 " in client.recv(1000)
        client.sendall(half)
        received = b""
        while part := client.recv(1000):  # an end of the connection; else the time above runs out
            received += part
    assert (b" 408 " in received) == (start == "half of the body")


def test_a_client_that_does_not_take_its_answer_is_cut_off(slow: int, server: uvicorn.Server) -> None:
    with socket.socket() as client:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1)  # nobody reads here, so buffers fill
        client.connect(("127.0.0.1", slow))
        client.sendall(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
        _wait_until(lambda: server.server_state.total_requests == 1)
        _wait_until(lambda: not server.server_state.connections)


def _wait_until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> uvicorn.Server:
    """A service that does not wait long."""
    for name in ("HEADERS_S", "BODY_S", "ANSWER_S"):
        monkeypatch.setattr(connections, name, 0.2)
    processes = Processes({"name": "exact_match"}, 0, 16.0)
    app = build_app(processes, None, 16.0)
    app.add_api_route("/long", lambda: "x" * 2**24)
    return uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", http=connections.Impatient, ws="none"))


@pytest.fixture
def slow(server: uvicorn.Server) -> Iterator[int]:
    """The port of that service, which runs in a thread."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
        thread.start()
        yield listener.getsockname()[1]
        server.should_exit = True
        thread.join()


def test_a_function_that_is_wrong_is_named_with_a_status_that_is_not_retried(tmp_path: Path) -> None:
    (tmp_path / "wrong.py").write_text("def one_value(completions): return [1.0]")
    processes = Processes({"name": f"{tmp_path}/wrong.py:one_value"}, 1, 16.0)
    try:
        body = {"prompts": ["p"] * 2, "completions": ["a", "b"]}
        answer = TestClient(build_app(processes, None, 16.0)).post("/score", json=body)
    finally:
        processes.close()
    assert answer.status_code == 422
    assert "one_value' returned 1 value for 2 completions" in answer.text


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({"prompts": ["p"], "completions": ["a", "b"]}, "prompts has 1 entries, completions has 2"),
        ({"prompts": ["p"], "completions": ["a"], "columns": {"answer": []}}, "columns.answer has 0"),
        ({"prompts": [], "completions": []}, "0 completions"),
        ({"prompts": "p"}, "completions"),
    ],
)
def test_what_does_not_fit_together_is_refused(url: str, body: dict[str, object], said: str) -> None:
    answer = httpx.post(f"{url}/score", json=body, headers={"Authorization": "Bearer secret"})
    assert answer.status_code == 422
    assert said in answer.text


def test_wider_than_this_machine_takes_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("SOME_TOKEN", raising=False)
    assert check_token("127.0.0.1", None) is None
    for host in ("0.0.0.0", "10.0.0.1", "::", "rewards.example"):
        assert not is_loopback(host)
        with pytest.raises(ConfigError, match="so a token is required"):
            check_token(host, None)
    with pytest.raises(ConfigError, match="has no such variable"):
        check_token("0.0.0.0", "SOME_TOKEN")
    monkeypatch.setenv("SOME_TOKEN", "x")
    assert check_token("0.0.0.0", "SOME_TOKEN") == "x"
    assert is_loopback("::1")
    assert is_loopback("localhost")
