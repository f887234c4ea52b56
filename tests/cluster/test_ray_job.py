"""`launch/ray_job.sh` against a real local head with token authentication."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.runs import SMALL, read_metrics

ROOT = Path(__file__).parents[2]
RAY = str(Path(sys.executable).parent / "ray")
DASHBOARD_PORT, HEAD_PORT = 28265, 26379
# Not Ray's default, which any other Ray on this machine has too: without its port the agent that starts jobs gives up.
AGENT_PORT = 28365


@pytest.fixture
def head(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A head of this test's own; yields the environment in which its token is known."""
    token = tmp_path / "token"
    token.write_text(uuid.uuid4().hex * 2)
    temp = Path("/tmp") / f"rlsys-{uuid.uuid4().hex[:8]}"  # Ray's socket paths must be short
    env = {**os.environ, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(token), "RLSYS_RUNS": str(tmp_path)}
    env["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{env['PATH']}"  # the jobs' `python`
    env.pop("RAY_ADDRESS", None)
    command = [RAY, "start", "--head", f"--port={HEAD_PORT}", f"--dashboard-port={DASHBOARD_PORT}", "--num-cpus=6"]
    command.append(f"--dashboard-agent-listen-port={AGENT_PORT}")
    started = subprocess.Popen(
        [*command, f"--temp-dir={temp}", "--disable-usage-stats", "--block"],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    try:
        _wait_for_head(env, started)
        yield env
    finally:
        started.terminate()
        try:
            started.wait(timeout=30)
        except subprocess.TimeoutExpired:
            started.kill()
            started.wait()
        shutil.rmtree(temp, ignore_errors=True)


def _wait_for_head(env: dict[str, str], head_process: subprocess.Popen[str]) -> None:
    """Until it takes a job: it answers before the agent that starts jobs is there."""
    for _ in range(60):
        answer = subprocess.run(
            [RAY, "job", "submit", "--no-wait", "--address", f"http://127.0.0.1:{DASHBOARD_PORT}", "--", "true"],
            env=env,
            capture_output=True,
            text=True,
            check=False,
        )
        if answer.returncode == 0:
            return
        assert head_process.poll() is None, "the head died"
    pytest.fail(f"no head after 60 tries: {answer.stdout}{answer.stderr}")


def submit(env: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["bash", str(ROOT / "launch" / "ray_job.sh"), "--address", f"http://127.0.0.1:{DASHBOARD_PORT}"]
    return subprocess.run([*command, *arguments], env=env, capture_output=True, text=True, timeout=500, check=False)


@pytest.mark.timeout(1200)
def test_a_job_trains_and_a_wrong_token_or_key_is_refused(head: dict[str, str], tmp_path: Path) -> None:
    small = [*SMALL, "train.num_steps=2", f"model.cache_dir={tmp_path}/models", f"run_dir={tmp_path}/run"]
    result = submit(head, *small)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "step 2/2" in result.stdout  # the logs were followed
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == [0, 1, 2]

    # Hydra overrides behave as they do without a cluster.
    wrong_key = submit(head, "train.num_step=2")
    assert wrong_key.returncode != 0
    assert "did you mean 'train.num_steps'?" in wrong_key.stdout + wrong_key.stderr

    # The doctor joins it too, and looks at its node.
    command = [sys.executable, "-m", "rlsys.cli", "doctor", f"cluster.address=127.0.0.1:{HEAD_PORT}"]
    doctor = subprocess.run(command, env=head, cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False)
    assert doctor.returncode == 0, doctor.stdout + doctor.stderr
    assert f"ok   connection         1 nodes at 127.0.0.1:{HEAD_PORT} (from cluster.address)" in doctor.stdout
    node = doctor.stdout.partition("\nnode ")[2]
    assert "ok   CPUs " in node
    assert "ok   clock              agrees with the driver's" in node

    # Without a token one is made. It is not the head's, and nobody else may read it.
    without = {name: value for name, value in head.items() if name != "RAY_AUTH_TOKEN_PATH"}
    refused = submit({**without, "HOME": str(tmp_path)}, *small)
    assert refused.returncode != 0
    assert "no Ray head that takes this token" in refused.stderr
    assert (tmp_path / ".ray" / "auth_token").stat().st_mode & 0o777 == 0o600
