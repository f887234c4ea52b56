"""The client of a reward service, against services that misbehave on purpose, and against our own."""

from __future__ import annotations

import json
import math
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rlsys.errors import ConfigError
from rlsys.rewards import Failed
from rlsys.rewards.entry import bind_reward
from rlsys.scoring.call import RewardLog, RewardRequest, call_reward

Answer = Callable[[int, dict[str, Any]], tuple[int, Any]]


class Service:
    """Answers the n-th request (from 0) as a function says; keeps what it was asked."""

    def __init__(self, answer: Answer) -> None:
        self.bodies: list[dict[str, Any]] = []
        self.tokens: list[str | None] = []
        service = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with service.lock:
                    number = len(service.bodies)
                    service.bodies.append(body)
                    service.tokens.append(self.headers.get("Authorization"))
                status, content = answer(number, body)
                payload = content if isinstance(content, bytes) else json.dumps(content).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(payload)))
                self.end_headers()
                self.wfile.write(payload)

            def log_message(self, *_: Any) -> None:
                pass

        self.lock = threading.Lock()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}/score"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()


@pytest.fixture
def service() -> Iterator[Callable[[Answer], Service]]:
    started: list[Service] = []

    def start(answer: Answer) -> Service:
        started.append(Service(answer))
        return started[-1]

    yield start
    for one in started:
        one.server.shutdown()
        one.server.server_close()


def good(_: int, body: dict[str, Any]) -> tuple[int, Any]:
    return 200, {"rewards": [float(len(text)) for text in body["completions"]]}


def request(*completions: str) -> RewardRequest:
    count = len(completions)
    prompts = [f"p{number}" for number in range(count)]
    return RewardRequest(prompts, completions, [[1]] * count, {"answer": [c[:1] for c in completions]}, 7)


def client(url: str, **options: Any) -> Callable[..., Any]:
    return bind_reward({"name": "http", "url": url, "wait_s": 0.01, **options})


def score(function: Callable[..., Any], *completions: str) -> list[Any]:
    return call_reward(function, request(*completions), RewardLog())


@pytest.mark.parametrize(
    "reward", [{"name": "http", "max_tries": 2}, {"name": "llm_judge", "model": "m", "max_tries": 1}]
)
def test_a_failure_names_the_host_and_no_secret_of_the_url(reward: dict[str, Any]) -> None:
    """Failures are written with the rollouts, and a url may come from the environment."""
    with socket.socket() as closed:  # bound, but nobody listens
        closed.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{closed.getsockname()[1]}"
        url = f"http://me:hunter2@{host}/hunter2?key=hunter2"
        function = bind_reward({**reward, "url": url, "timeout_s": 20.0})
        (failed,) = call_reward(function, request("a"), RewardLog())
    assert isinstance(failed, Failed)
    assert host in failed.detail
    assert "hunter2" not in failed.detail


def test_rows_travel_in_batches_and_come_back_in_order(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "secret")
    server = service(good)
    function = client(server.url, batch_size=2, num_parallel=1, token_env="MY_TOKEN")
    given = replace(request("a", "bb", "ccc", "dddd", "eeeee"), prompts=["p", "p", "q", "q", "p"])
    assert call_reward(function, given, RewardLog()) == [1, 2, 3, 4, 5]
    assert [body["completions"] for body in server.bodies] == [["a", "bb"], ["ccc", "dddd"], ["eeeee"]]
    assert server.bodies[1] == {
        "prompts": ["q", "q"],
        "completions": ["ccc", "dddd"],
        "completion_ids": [[1], [1]],
        "columns": {"answer": ["c", "d"]},
        "step": 7,
    }
    assert server.tokens == ["Bearer secret"] * 3


def test_a_prompt_s_responses_travel_together(service: Any) -> None:
    server = service(good)
    function = client(server.url, batch_size=3, num_parallel=1)
    given = replace(request("a", "b", "c", "d", "e", "f", "g"), prompts=["p", "p", "q", "r", "r", "r", "r"])
    assert call_reward(function, given, RewardLog()) == [1.0] * 7
    assert [body["prompts"] for body in server.bodies] == [["p", "p", "q"], ["r"] * 4]


def test_columns_that_cannot_be_sent_are_named_and_can_be_left_out(service: Any) -> None:
    server = service(good)
    odd = {"answer": ["a"], "when": [datetime(2026, 1, 1)], "share": [math.nan]}
    given = replace(request("a"), columns=odd)
    with pytest.raises(ValueError, match=r"the column 'when' cannot be sent .*datetime.*option 'columns'"):
        call_reward(client(server.url), given, RewardLog())
    with pytest.raises(ValueError, match="the column 'share' cannot be sent"):
        call_reward(client(server.url, columns=["answer", "share"]), given, RewardLog())
    assert server.bodies == []
    theirs = service(lambda _, body: (200, {"rewards": [1.0]}))
    assert call_reward(client(theirs.url, protocol="openrlhf"), given, RewardLog()) == [1.0]  # labels alone are sent
    assert call_reward(client(server.url, columns=["answer"]), given, RewardLog()) == [1.0]
    assert server.bodies[0]["columns"] == {"answer": ["a"]}


def test_a_metric_that_is_no_number_costs_no_score(service: Any) -> None:
    server = service(lambda _, body: (200, {"rewards": [1.0], "metrics": {"bad": None, "good": 0.5}}))
    log = RewardLog()
    assert call_reward(client(server.url), request("a"), log) == [1.0]
    assert log.metrics == {"http/failed_batches": [0.0], "good": [0.5]}


def test_what_may_be_better_the_next_time_is_tried_again(service: Any) -> None:
    answers = [(503, {}), (429, {}), None]

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        return answers[number] or good(number, body)

    server = service(answer)
    assert score(client(server.url), "abc") == [3.0]
    assert len(server.bodies) == 3


def test_tries_are_bounded_and_only_that_batch_fails(service: Any) -> None:
    server = service(lambda n, body: (500, {}) if "bad" in body["completions"] else good(n, body))
    scores = score(client(server.url, batch_size=1, max_tries=3, breaker_failures=99), "a", "bad", "ccc")
    assert scores[0] == 1
    assert scores[2] == 3
    assert isinstance(scores[1], Failed)
    assert "status 500, in 3 tries" in scores[1].detail
    assert sum("bad" in body["completions"] for body in server.bodies) == 3


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        ((401, {"detail": "no"}), "status 401"),
        ((404, b"not here"), "status 404: not here"),
        ((200, b"<html>"), "not an object with 'rewards'"),
        ((200, {"scores": [1]}), "not an object with 'rewards'"),
        ((200, {"rewards": [1.0, 2.0]}), "does not have one reward for each of 1"),
        ((200, {"rewards": "x"}), "does not have one reward for each of 1"),
    ],
)
def test_a_final_answer_is_not_asked_for_again(service: Any, answer: tuple[int, Any], said: str) -> None:
    server = service(lambda *_: answer)
    (failed,) = score(client(server.url), "a")
    assert isinstance(failed, Failed)
    assert said in failed.detail
    assert len(server.bodies) == 1


def test_entries_with_an_outcome() -> None:
    from rlsys.rewards.http import _score

    assert _score({"value": 0.5, "outcome": "ok", "detail": ""}) == 0.5
    assert _score({"value": None, "outcome": "not_applicable", "detail": ""}) is None
    assert _score({"value": None, "outcome": "timeout", "detail": "slow"}) == Failed("slow", "timeout")
    assert isinstance(_score("high"), Failed)
    assert isinstance(_score(True), Failed)


def test_a_slow_service_is_given_up_at_the_deadline(service: Any) -> None:
    given_up = threading.Event()

    def slow(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        given_up.wait(60)  # it would answer if it were waited for
        return good(number, body)

    server = service(slow)
    (failed,) = score(client(server.url, timeout_s=0.1, max_tries=2), "a")
    given_up.set()
    assert isinstance(failed, Failed)
    assert "no reply (ReadTimeout" in failed.detail


def test_all_tries_together_end_before_the_call_s_deadline(service: Any) -> None:
    """A service that takes the request and never answers: the rows are errors, and the process lives."""

    def silent(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        time.sleep(6)
        return good(number, body)

    server = service(silent)
    started = time.monotonic()
    asked = replace(request("a", "b"), deadline_s=4.0)
    scores = call_reward(client(server.url, timeout_s=1.0, max_tries=99), asked, RewardLog())
    assert time.monotonic() - started < 4.0
    assert all(isinstance(score, Failed) for score in scores)


def test_what_the_service_notes_is_noted_here(service: Any) -> None:
    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        count = len(body["completions"])
        extra = {"length": [len(text) for text in body["completions"]]} if number == 0 else {}
        return 200, {"rewards": [1.0] * count, "metrics": {"seen": count}, "extra": extra}

    server, log = service(answer), RewardLog()
    call_reward(client(server.url, batch_size=2, num_parallel=1), request("a", "bb", "ccc"), log)
    assert log.metrics["seen"] == [2.0, 1.0]
    assert log.extra == {"length": [1, 2, None]}


def test_after_several_failures_nothing_is_sent_for_a_while(service: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = True
    server = service(lambda n, body: (500, {}) if broken else good(n, body))
    function = client(server.url, max_tries=1, breaker_failures=3, breaker_s=600.0)
    details = [score(function, "a")[0].detail for _ in range(6)]
    assert len(server.bodies) == 3
    assert ["circuit breaker open" in detail for detail in details] == [False] * 3 + [True] * 3
    broken = False
    assert isinstance(score(function, "a")[0], Failed)  # still open
    monkeypatch.setattr("circuitbreaker.monotonic", lambda: time.monotonic() + 601.0)
    assert score(function, "abc") == [3.0]  # one goes through, and closes it
    assert score(function, "ab") == [2.0]


def test_running_out_of_time_says_nothing_about_the_service(service: Any) -> None:
    """Six batches that wait for one another meet the call's deadline; the next call is sent as if nothing was."""
    slow = True

    def answer(number: int, body: dict[str, Any]) -> tuple[int, Any]:
        if slow:
            time.sleep(1.5)
        return good(number, body)

    server = service(answer)
    function = client(server.url, batch_size=1, num_parallel=1, breaker_failures=2, breaker_s=600.0)
    scores = call_reward(function, replace(request(*"abcdef"), deadline_s=2.5), RewardLog())
    assert [score.outcome for score in scores if isinstance(score, Failed)] == ["timeout"] * 6
    assert isinstance(scores[0], Failed)
    assert "no reply before the deadline of the call" in scores[0].detail
    slow = False
    assert score(function, "abc") == [3.0]


@pytest.mark.parametrize("variable", ["http_proxy", "HTTP_PROXY", "all_proxy"])
def test_a_proxy_is_not_asked_for_services_on_this_machine(
    service: Any, variable: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("NO_PROXY", "elsewhere.example")
    monkeypatch.setenv(variable, "http://127.0.0.1:9")  # nobody listens there
    server = service(good)
    assert score(client(server.url, max_tries=1), "abc") == [3.0]


def test_openrlhf_s_protocol(service: Any) -> None:
    server = service(lambda _, body: (200, {"rewards": [float(len(query)) for query in body["query"]]}))
    assert score(client(server.url, protocol="openrlhf"), "abc") == [5.0]
    assert server.bodies == [{"query": ["p0abc"], "prompts": ["p0"], "labels": ["a"]}]


@pytest.mark.parametrize(
    ("columns", "labels"),
    [({"label": ["x"]}, ["x"]), ({"label": ["x"], "answer": ["y"]}, ["x"]), ({"answer": ["y"]}, ["y"]), ({}, [None])],
)
def test_openrlhf_s_labels_are_its_own_column_else_the_answer(
    service: Any, columns: dict[str, list[Any]], labels: list[Any]
) -> None:
    server = service(lambda _, body: (200, {"rewards": [0.0]}))
    asked = RewardRequest(["p"], ("c",), [[1]], columns, 7)
    assert call_reward(client(server.url, protocol="openrlhf"), asked, RewardLog()) == [0.0]
    assert server.bodies[0]["labels"] == labels


def test_what_cannot_work_is_refused_at_the_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="must begin with http"):
        client("localhost:8000")
    with pytest.raises(ConfigError, match="token_env=MY_TOKEN"):
        client("http://localhost", token_env="MY_TOKEN")
