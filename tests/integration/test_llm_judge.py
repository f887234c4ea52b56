"""A judge behind a real vLLM server, started here."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from rlsys.config.build_schema import ModelBuild
from rlsys.models.tiny import build_model, build_tokenizer, save_model
from rlsys.scoring.call import RewardRequest
from rlsys.scoring.process import RewardProcess

pytestmark = pytest.mark.long  # a server of vLLM takes half a minute to start

KEY = "the-judge-s-key"


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    folder = tmp_path_factory.mktemp("judge")
    build = ModelBuild(num_layers=2, max_context=1024)
    tokenizer = build_tokenizer(build.tokenizer)
    save_model(build_model(build, tokenizer, seed=0), tokenizer, folder / "model")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "model")]
    command += ["--served-model-name", "judge", "--host", "127.0.0.1", "--port", str(port), "--api-key", KEY]
    command += ["--max-model-len", "1024", "--dtype", "float32", "--enforce-eager"]
    # A model that knows nothing would fill its reply with white space, which JSON allows.
    command += ["--structured-outputs-config", '{"backend": "xgrammar", "disable_any_whitespace": true}']
    threads = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "2"}
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            command, env={**os.environ, **threads}, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
        )
    base = f"http://127.0.0.1:{port}"
    deadline = time.monotonic() + 240
    while not _is_healthy(base):
        assert server.poll() is None, Path(folder / "log").read_text()[-3000:]
        assert time.monotonic() < deadline
        time.sleep(0.5)
    yield f"{base}/v1"
    os.killpg(server.pid, signal.SIGKILL)
    server.wait()


def _is_healthy(base: str) -> bool:
    try:
        return httpx.get(f"{base}/health").is_success
    except httpx.TransportError:
        return False


def judge(url: str, **options: Any) -> RewardProcess:
    spec = {"name": "llm_judge", "url": url, "model": "judge", "api_key_env": "JUDGE_KEY", **options}
    return RewardProcess(spec, call_deadline_s=60.0, row_deadline_s=30.0)


REQUEST = RewardRequest(
    [[{"role": "user", "content": "1+1="}]] * 3,
    [[{"role": "assistant", "content": text}] for text in ("2", "three", "")],
    [[1]] * 3,
    {"answer": ["2"] * 3},
    1,
)


def test_grades_lie_between_0_and_1(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("JUDGE_KEY", KEY)
    process = judge(url, max_score=4)
    parts, log = process.score(REQUEST)
    process.close()
    assert [part.outcome for part in parts] == ["ok"] * 3
    assert {part.value for part in parts} <= {0.0, 0.25, 0.5, 0.75, 1.0}
    assert log.metrics == {"llm_judge/failed": [0.0]}


@pytest.mark.parametrize(
    ("key", "options", "said"),
    [
        ("wrong", {}, "401"),
        (KEY, {"model": "another"}, "another"),
        (KEY, {"is_constrained": False, "max_tokens": 4}, "no grade in the judge's reply"),
        (KEY, {"url": "http://127.0.0.1:9/v1", "max_tries": 2}, "APIConnectionError"),
    ],
)
def test_a_reply_without_a_grade_is_an_error_and_not_a_0(
    url: str, monkeypatch: pytest.MonkeyPatch, key: str, options: dict[str, Any], said: str
) -> None:
    monkeypatch.setenv("JUDGE_KEY", key)
    process = judge(**{"url": url, **options})
    parts, log = process.score(REQUEST)
    process.close()
    assert [(part.value, part.outcome) for part in parts] == [(None, "error")] * 3
    assert all(said in part.detail for part in parts)
    assert log.metrics == {"llm_judge/failed": [1.0]}
