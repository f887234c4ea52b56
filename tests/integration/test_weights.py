"""A broadcast makes engines and learner agree, and the check catches one that does not."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from rlsys.errors import WeightMismatchError
from rlsys.metrics.step import Metrics
from rlsys.orchestrator.batch import StepBatch
from rlsys.runtime.processes import TAG, find_tagged
from rlsys.types import ExperienceRow, ScoredGroup
from rlsys.weights.from_config import canary_of
from tests.integration.runs import OpenRun, call_worker, read_metrics, sampled, small_run

SECRET = "hunter2-of-the-tests"
CASES = {
    "tied, ZeRO-3 on two ranks": ["learner.num_workers=2", "learner.zero_stage=3"],
    "untied, two engines": [
        "model.build.tie_word_embeddings=false",
        "rollout.num_workers=2",
        "weights.bucket_mib=1",
        "weights.share_memory=false",  # as if the engines were on another machine
        "model.build.architecture=llama",
    ],
    "tied, TP 2": ["rollout.tensor_parallel_size=2", "model.build.architecture=qwen3"],
}


PARAMS = [pytest.param(case, id=case, marks=[pytest.mark.long] if case == "tied, TP 2" else []) for case in CASES]


@pytest.fixture(scope="module", params=PARAMS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[OpenRun]:
    """Engines and learner of one case, started once for all tests of this file. Two prompts longer than a cache
    block, so that every step would hit the prefix cache of the step before."""
    folder = tmp_path_factory.mktemp("weights")
    data = folder / "data.jsonl"
    rows = [f'{{"prompt": "{"1+2=3+" * 8}{i}+{i}=", "answer": "{2 * i}"}}' for i in range(4)]
    data.write_text("\n".join(rows))
    overrides = [*CASES[request.param], f"data.train={data}", "data.eval=null", "algorithm.kl.coef=0.01"]
    (folder / "reward.py").write_text(
        "def with_token(completions, *, token, **_):\n    return [float(len(token) > 9)] * len(completions)"
    )
    token = f"{{name:'{folder}/reward.py:with_token',token:'${{oc.env:SERVICE_TOKEN}}'}}"
    with pytest.MonkeyPatch.context() as environment:
        for name in ("SERVICE_TOKEN", "HF_TOKEN", "WANDB_API_KEY"):
            environment.setenv(name, SECRET)
        with small_run(folder, [*overrides, f"rewards=[{{name:target_length,target:4}},{token}]"]) as opened:
            yield opened


def test_engines_and_learner_agree_after_every_broadcast(run: OpenRun) -> None:
    run.train()
    rows = read_metrics(run.folder)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    for row in rows[1:]:
        assert row["sync/logprob_abs_diff/p999"] < 1e-4
    # The weights moved: the agreement is not that of two models that never changed.
    assert rows[-1]["policy/kl_ref"] > 1e-3


def test_secrets_are_in_no_file_and_no_command_line_of_a_run(run: OpenRun) -> None:
    """Neither one that an option takes from the environment, nor one that only stands there, nor Ray's token."""
    secrets = [SECRET.encode(), os.environ["RAY_AUTH_TOKEN"].encode()]
    session = Path(ray._private.worker._global_node.get_session_dir_path())
    files = [file for folder in (run.folder, session) for file in folder.rglob("*") if file.is_file()]
    held = {file.name: file.read_bytes() for file in files}
    assert len(held) > 10
    commands = [" ".join(process.info["cmdline"] or ()) for process in psutil.process_iter(["cmdline"])]
    held |= {command: command.encode() for command in commands}
    assert [name for name, content in held.items() if any(secret in content for secret in secrets)] == []


def test_no_process_of_a_local_run_listens_beyond_this_machine(run: OpenRun) -> None:
    """Ray's, vLLM's, gloo's and PyTorch's ports: who reaches one could read or change what the run agrees on."""
    here = psutil.Process()
    processes = {here, *here.children(recursive=True), *find_tagged(os.environ[TAG])}  # forks are the servers' children
    listening = [
        (process.name(), connection.laddr.ip.removeprefix("::ffff:"))
        for process in processes
        for connection in process.net_connections("inet")
        if connection.status == psutil.CONN_LISTEN or (connection.type == socket.SOCK_DGRAM and not connection.raddr)
    ]
    assert {"gcs_server", "raylet", "ray::PolicyRank", "ray::RolloutWorker"} <= {name for name, _ in listening}
    assert {address for _, address in listening} == {"127.0.0.1"}, listening


def test_workers_are_forks_of_what_has_imported_their_libraries(run: OpenRun) -> None:
    """A library that starts a thread when it is imported would have each worker import everything again."""
    for worker in (run.run.roles.rollout._workers[0], *run.run.roles.policy._workers.values()):
        process = psutil.Process(call_worker(worker, lambda _: os.getpid()))
        server = process.parent()
        assert server is not None
        assert "fork_server.py" in " ".join(server.cmdline())
        assert process.environ() == server.environ()  # a fork shows what its server began with


def test_a_layer_left_out_of_the_broadcast_is_caught(run: OpenRun) -> None:
    _check_caught(run, "model.layers.1.mlp.down_proj")


def test_an_output_layer_left_out_of_the_broadcast_is_caught(run: OpenRun) -> None:
    tied = run.run.prepared.config.model.build.tie_word_embeddings
    _check_caught(run, "model.embed_tokens" if tied else "lm_head")


def _check_caught(run: OpenRun, skipped: str) -> None:
    """A broadcast that leaves `skipped` out is an error; after a whole one training goes on."""
    run.wait(run.run.weights.broadcast(1000))
    _update(run, 1000)
    names = [e for e in run.run.roles.policy._update_info["names"] if not e.startswith(skipped)]
    assert len(names) < len(run.run.roles.policy._update_info["names"])
    lost = pytest.raises(WeightMismatchError, match="received no weights and kept older ones")
    with _broadcast_only(run, names), lost as caught:
        run.wait(run.run.weights.broadcast(1001))
    assert "policy version 1001 did not reach rollout/0 (rank 0 of" in str(caught.value)
    assert f": {skipped}.weight received" in str(caught.value)
    run.wait(run.run.weights.broadcast(1002))
    assert 0 < _probe(run, 1002)["sync/logprob_abs_diff/p999"] < 1e-4
    metrics = _update(run, 1002)
    assert metrics["sync/logprob_abs_diff/p999"] < 1e-4


def _probe(run: OpenRun, version: int) -> Metrics:
    """What engines and learner give a fixed text, as in a run that samples ahead."""
    roles = run.run.roles
    canary = canary_of(run.run.prepared, roles.policy, roles.rollout, roles.cluster.calls)

    async def probe() -> Metrics:
        canary.begin(version)
        await canary.finish()
        return canary.take()

    return run.wait(probe())


def _update(run: OpenRun, version: int) -> dict[str, float]:
    groups = sampled(run, 4, version)

    async def update() -> dict[str, float]:
        referenced = [await _referenced(run, group) for group in groups]
        made = await run.run.experience.build(StepBatch(version, tuple(referenced), tuple(range(4))))
        moved = replace(made, minibatches=(_alternating(made.minibatches[0]),))
        learned = await run.run.roles.policy.update(moved)
        assert not learned.nonfinite
        return {name: value for name, value in learned.metrics.items() if value is not None}

    return run.wait(update())


async def _referenced(run: OpenRun, group: ScoredGroup) -> ScoredGroup:
    assert run.run.reference.queue is not None
    return replace(group, reference=await run.run.reference.queue.put(group.rollout))


def _alternating(rows: tuple[ExperienceRow, ...]) -> tuple[ExperienceRow, ...]:
    """Advantages that surely move the policy, whatever the rewards were."""
    return tuple(replace(row, advantage=1.0 if row.index % 2 == 0 else -1.0) for row in rows)


class _broadcast_only:  # noqa: N801 - reads as a statement
    """Both sides leave out every parameter but `names`, as a sender with a gap would."""

    def __init__(self, run: OpenRun, names: list[str]) -> None:
        self._run = run
        self._names = set(names)
        self._info = run.run.roles.policy._update_info

    def __enter__(self) -> None:
        self._patch(self._names)
        keep = [i for i, name in enumerate(self._info["names"]) if name in self._names]
        self._run.run.roles.policy._update_info = {key: [values[i] for i in keep] for key, values in self._info.items()}

    def __exit__(self, *_: object) -> None:
        self._patch(set(self._info["names"]))
        self._run.run.roles.policy._update_info = self._info

    def _patch(self, names: set[str]) -> None:
        def patch(worker: Any) -> None:
            sender = worker._sender
            whole = type(sender).manifest
            sender.manifest = lambda: [entry for entry in whole(sender) if entry.name in names]

        for worker in self._run.run.roles.policy._workers.values():
            call_worker(worker, patch)


def test_versions_travel_with_the_tokens(run: OpenRun, tmp_path: Path) -> None:
    run.wait(run.run.weights.broadcast(2000))
    (group,) = sampled(run, 1, 2000)
    for trajectory in run.wait(run.run.roles.rollout.trajectories(group.rollout)):
        assert {span.policy_version for span in trajectory.versions} == {2000}
        covered = sum(span.end - span.start for span in trajectory.versions)
        assert covered == int(trajectory.loss_mask.sum()) == len(trajectory.response_ids)
