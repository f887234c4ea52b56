"""Weights change under requests that run: every token has its version, and its log-probability is that version's."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch

from rlsys.build.placement import worker_demands
from rlsys.build.run import start_rollout
from rlsys.config.compose import load_config
from rlsys.errors import WorkerError
from rlsys.models.packing import TokenRow, token_batch
from rlsys.models.policy import load_policy
from rlsys.preflight.prepare import prepare
from rlsys.runtime.calls import fetch
from rlsys.types import Finished, GroupRequest, Sampling, Trajectory
from rlsys.weights.receipt import Received
from rlsys.weights.sender import WeightSender
from tests.integration.runs import SMALL, call_worker, connected, wait

BUCKET_BYTES = 2**17
LONG, MIDDLE, SHORT = 700, 250, 20
"""Response lengths. A short one that has finished says that those beside it have as many tokens at least."""
ROOM = ["rollout.max_num_seqs=3", f"rollout.max_response_tokens={LONG}", "model.build.max_context=1024"]
LATE_S = 300.0  # for answers of an engine that has nothing else to do, on a machine that has

generator = np.random.default_rng(0)
SHARED, OTHER = (generator.integers(5, 15, length).astype(np.int32) for length in (200, 7))
"""Two prompts, the first longer than a cache block (128 tokens), so that requests could share it."""


@dataclass
class Engine:
    """A rollout worker, the sender of its weights, and what it has answered."""

    worker: Any
    sender: WeightSender
    policy: Any
    answers: dict[tuple[int, int], tuple[Finished, Trajectory | None]] = field(default_factory=dict)

    def join(self, deadline_s: float) -> None:
        """Open a channel between this process and the engine."""
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        info: dict[str, Any] = {"master_address": "127.0.0.1", "master_port": port, "rank_offset": 1, "world_size": 2}
        info |= {"bucket_bytes": BUCKET_BYTES, "deadline_s": deadline_s, "is_checked": True}
        joining = self.worker.join_weights.remote(info)
        self.sender.open("gloo", "127.0.0.1", port, 2, deadline_s)
        self.get(joining)

    def update(self, version: int) -> dict[str, float]:
        use(self.policy, version)
        receiving = self.worker.receive_weights.remote(self.sender.update_info(), version)
        sent = self.sender.send()
        received: Received = self.get(receiving)
        assert [receipt.checksums for receipt in received.receipts] == [sent]
        return dict(received.times)

    def submit(self, group: int, prompt: np.ndarray, length: int, samples: int = 1, version: int = 0) -> None:
        sampling = Sampling(1.0, length, samples, ignore_eos=True)
        self.get(self.worker.submit.remote([GroupRequest(group, prompt, (sampling,), stream=group)], version))

    def until(self, group: int, samples: int = 1) -> None:
        """Wait until the engine has answered with every sample of `group`."""
        end = time.monotonic() + LATE_S
        while not all((group, sample) in self.answers for sample in range(samples)):
            assert time.monotonic() < end, f"no answer for group {group}"
            self.listen(5.0)

    def listen(self, max_wait_s: float) -> None:
        listed, chunk = self.worker.finished.options(num_returns=2).remote(max_wait_s, 0.0)
        finished, trajectories = self.get(listed), self.get(chunk)
        for one, trajectory in zip(finished, trajectories, strict=True):
            self.answers[one.request_id, one.sample] = (one, trajectory)

    def trajectory(self, group: int, sample: int = 0) -> Trajectory:
        trajectory = self.answers[group, sample][1]
        assert trajectory is not None
        return trajectory

    def error_of(self, trajectory: Trajectory, version: int) -> float:
        """Largest difference to the policy of `version` over the tokens credited to it."""
        use(self.policy, version)
        batch = token_batch([TokenRow(trajectory.token_ids, trajectory.loss_mask)], self.policy.layout)
        with torch.no_grad():
            expected, _ = self.policy(batch, 1.0)
        [span] = [span for span in trajectory.versions if span.policy_version == version]
        difference = expected[0].numpy() - trajectory.behavior_logprobs
        return float(np.abs(difference[span.start : span.end]).max())

    @staticmethod
    def get(ref: Any) -> Any:
        return wait(fetch(ref, who="rollout/0", what="test"))


def use(policy: Any, version: int) -> None:
    """Give `policy` the weights of a version: large random ones, so that versions are far apart."""
    noise = torch.Generator().manual_seed(version)
    with torch.no_grad():
        for parameter in policy.hf.parameters():
            if parameter.dim() > 1:
                parameter.copy_(0.06 * torch.randn(parameter.shape, generator=noise))


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Engine]:
    folder = tmp_path_factory.mktemp("inflight")
    prepared = prepare(load_config([*SMALL, *ROOM, f"model.cache_dir={folder}"]))
    prepared = replace(prepared, max_tokens=1024)  # prompts come from here, not from the data
    wanted = worker_demands(prepared.config)["rollout"]
    with connected(prepared.config, "rollout") as cluster:
        pool = start_rollout(cluster, prepared, wanted)
        wait(pool.start(300.0))
        policy = load_policy(str(prepared.model_path), torch.float32, max_tokens=prepared.max_tokens)
        sender = WeightSender(policy.hf, torch.float32, rank=0, bucket_bytes=BUCKET_BYTES)
        made = Engine(pool._workers[0], sender, policy)
        made.join(LATE_S)
        made.update(0)
        yield made
        wait(pool.stop(30.0))


def set_inflight_kv(choice: str) -> Any:
    def change(worker: Any) -> None:
        worker._config.inflight_kv = choice

    return change


@pytest.mark.parametrize(("choice", "start"), [("keep", 0), ("recompute", 10)])
def test_a_response_across_two_updates(engine: Engine, choice: str, start: int) -> None:
    """Three versions from `start` on; groups 1 and 4 have a prompt in common that is worth caching."""
    call_worker(engine.worker, set_inflight_kv(choice))
    engine.update(start)
    engine.answers.clear()
    engine.submit(1, SHARED, LONG, samples=2, version=start)
    engine.submit(2, OTHER, SHORT)
    engine.until(2)
    assert (1, 0) not in engine.answers  # the short one was handed out while the long ones run
    engine.submit(3, OTHER, MIDDLE)
    engine.submit(4, SHARED, SHORT)  # all three places are taken: it waits, with the first version's salt
    first = engine.update(start + 1)
    engine.until(4)
    second = engine.update(start + 2)
    engine.submit(5, SHARED, SHORT, version=start + 2)
    engine.until(5)
    engine.until(1, samples=2)

    for times in (first, second):
        assert 0 < times["reload_s"] <= times["stalled_s"] < LATE_S
        assert times["transfer_s"] > 0
    for sample in range(2):
        _check_crossing(engine, engine.trajectory(1, sample), start, is_exact=choice == "recompute")
    assert versions(engine.trajectory(2)) == [start]
    assert versions(engine.trajectory(3)) == [start, start + 1]
    for group, version in ((4, start + 1), (5, start + 2)):
        assert versions(engine.trajectory(group)) == [version]
        assert engine.error_of(engine.trajectory(group), version) < 1e-4
    oldest = {group: engine.answers[group, 0][0].summary for group in (1, 5)}
    assert {group: summary.policy_version for group, summary in oldest.items() if summary} == {1: start, 5: start + 2}


def _check_crossing(engine: Engine, trajectory: Trajectory, start: int, *, is_exact: bool) -> None:
    """Its spans follow one another over three versions; with the cache of older weights kept, later ones are off."""
    spans = trajectory.versions
    assert versions(trajectory) == [start, start + 1, start + 2]
    assert [span.start for span in spans] == [len(SHARED), spans[0].end, spans[1].end]
    assert spans[-1].end == len(SHARED) + LONG
    assert all(span.end - span.start >= SHORT for span in spans[:2])
    assert engine.error_of(trajectory, start) < 1e-4
    for version in (start + 1, start + 2):
        error = engine.error_of(trajectory, version)
        assert (error < 1e-4) if is_exact else (error > 1e-2)


def versions(trajectory: Trajectory) -> list[int]:
    return [span.policy_version for span in trajectory.versions]


LAST = 13
"""The version that the engine has from here on."""


def test_a_request_between_a_failed_update_and_the_next_waits_for_it(engine: Engine) -> None:
    """As when another engine is killed in the middle of a broadcast: its requests come here, and it is repeated."""
    call_worker(engine.worker, break_the_next_update)
    with pytest.raises(WorkerError, match="rollout/0 could not load policy version 13: the peer is gone"):
        engine.update(LAST)
    engine.submit(8, OTHER, SHORT, version=LAST - 1)
    engine.listen(0.5)
    assert (8, 0) not in engine.answers  # the layers may be of two versions
    engine.update(LAST)
    engine.until(8)
    assert versions(engine.trajectory(8)) == [LAST]
    assert engine.error_of(engine.trajectory(8), LAST) < 1e-4


def break_the_next_update(worker: Any) -> None:
    load = worker._load

    async def failing(update_info: dict[str, Any]) -> Any:
        worker._load = load
        await load(update_info)
        raise RuntimeError("the peer is gone")

    worker._load = failing


def test_cancelled_groups_are_not_reported(engine: Engine) -> None:
    engine.submit(10, OTHER, LONG, samples=4, version=LAST)
    engine.submit(11, OTHER, SHORT, version=LAST)
    engine.get(engine.worker.cancel.remote([10]))
    engine.until(11)
    engine.listen(0.5)
    assert not any(group == 10 for group, _ in engine.answers)
    left = call_worker(engine.worker, lambda worker: worker._engine.num_unfinished)
    assert left == 0


def test_a_request_that_fails_is_reported_and_keeps_its_place_empty(engine: Engine) -> None:
    engine.submit(20, np.ones(2000, dtype=np.int32), SHORT, version=LAST)
    engine.submit(21, OTHER, SHORT, version=LAST)
    engine.until(20)
    engine.until(21)
    finished, trajectory = engine.answers[20, 0]
    assert finished.summary is None
    assert trajectory is None
    assert "2000" in str(finished.error)
    assert engine.error_of(engine.trajectory(21), LAST) < 1e-4


def test_a_version_that_the_engine_lacks_is_refused(engine: Engine) -> None:
    with pytest.raises(WorkerError, match="rollout/0 holds policy version 13, but the request expects version 14"):
        engine.submit(30, OTHER, SHORT, version=14)


def test_a_transfer_that_never_comes_is_an_error_and_the_engine_goes_on(engine: Engine) -> None:
    """Last, since it ends the channel."""
    engine.join(deadline_s=2.0)
    engine.submit(40, OTHER, LONG, samples=3, version=LAST)
    engine.submit(41, OTHER, LONG, samples=3, version=LAST)
    engine.submit(42, OTHER, LONG, samples=3, version=LAST)
    with pytest.raises(
        WorkerError, match=r"rollout/0 received no weights: .*transfer of weights failed: .*[Tt]imed out"
    ):
        engine.get(engine.worker.receive_weights.remote(engine.sender.update_info(), 14))
    engine.until(42, samples=3)
    assert {span.policy_version for sample in range(3) for span in engine.trajectory(42, sample).versions} == {LAST}
