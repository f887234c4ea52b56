"""Real engines that are killed in a real run come back with the current weights; no prompt is lost or trained twice."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlsys.train import train
from tests.integration.runs import OpenRun, call_worker, read_metrics, small_run, wait

TWO = ("rollout.num_workers=2", "train.max_staleness=1", "train.num_steps=12", "rollout.max_response_tokens=24")
DEADLINE_S = 300.0  # for a new engine: some seconds on a machine of its own


class Faults:
    """What happens to engines at the end of a step; a step may also wait until all serve again."""

    def __init__(self, opened: OpenRun) -> None:
        self.run = opened.run
        self.pool = opened.run.roles.rollout
        self.at: dict[int, Any] = {}
        record = self.run.recorder.record

        async def recorded(step: int, *args: Any) -> None:
            await record(step, *args)
            if step in self.at:
                await self.at[step]()

        self.run.recorder.record = recorded  # type: ignore[method-assign]

    async def send(self, how: signal.Signals, *engines: int) -> None:
        for engine in engines:
            os.kill(call_worker(self.pool._workers[engine], lambda _: os.getpid()), how)

    async def all_serve(self) -> None:
        """Sampling goes on meanwhile."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.run.sampler.router.load) < 2:
                await asyncio.sleep(0.1)

    def train(self) -> None:
        wait(self.run.supervise(train(self.run)))


def check_ledger(folder: Path, num_steps: int) -> None:
    """Every step trained its prompts, and every prompt once, under versions within the bound."""
    trained: Counter[int] = Counter()
    for step in range(1, num_steps + 1):
        lines = (folder / "rollouts" / f"step-{step:06d}.jsonl").read_text().splitlines()
        rollouts = [json.loads(line) for line in lines]
        assert len(rollouts) == 4 * 4
        trained.update({rollout["group_id"]: rollout["prompt_index"] for rollout in rollouts}.values())
        assert all(0 <= step - 1 - rollout["policy_version"] <= 1 for rollout in rollouts)
    assert len(trained) == num_steps * 4
    assert set(trained.values()) == {1}


@pytest.mark.timeout(900)
def test_engines_that_are_killed_come_back(tmp_path: Path) -> None:
    """First one of two, while a broadcast begins; later both at once, so that nothing can be sampled for a while."""
    with small_run(tmp_path, TWO) as opened:
        faults = Faults(opened)
        broadcaster: Any = opened.run.weights._broadcaster
        send = broadcaster._sender.begin_send_weights

        def kill_and_send() -> Any:
            broadcaster._sender.begin_send_weights = send
            os.kill(victim, signal.SIGKILL)
            return send()

        victim = call_worker(faults.pool._workers[1], lambda _: os.getpid())

        async def kill_in_broadcast() -> None:
            broadcaster._sender.begin_send_weights = kill_and_send

        faults.at = {
            2: kill_in_broadcast,
            4: faults.all_serve,
            6: lambda: faults.send(signal.SIGKILL, 0, 1),
            9: faults.all_serve,
        }
        faults.train()
        assert opened.run.supervisor.num_replaced == 3
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(13))
    assert [rows[-1][key] for key in ("policy_version", "schedule/engines", "schedule/engines_lost")] == [12, 2, 3]
    check_ledger(tmp_path / "run", 12)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_an_engine_that_is_stopped_is_replaced(tmp_path: Path) -> None:
    """Nothing fails by itself: a broadcast waits for it until it is found not to answer."""
    with small_run(tmp_path, TWO) as opened:
        faults = Faults(opened)
        faults.at = {3: lambda: faults.send(signal.SIGSTOP, 1), 8: faults.all_serve}
        faults.train()
        assert opened.run.supervisor.num_replaced == 1
    check_ledger(tmp_path / "run", 12)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_adapters_reach_an_engine_that_came_back(tmp_path: Path) -> None:
    """Without a group: adapters go by files. The canary would end a run whose engine lacks the adapter."""
    lora = ("learner.lora.rank=4", "learner.lora.alpha=8")
    with small_run(tmp_path, [*TWO, *lora, "train.num_steps=8"]) as opened:
        faults = Faults(opened)
        faults.at = {2: lambda: faults.send(signal.SIGKILL, 0), 4: faults.all_serve}
        faults.train()
        assert opened.run.supervisor.num_replaced == 1
    check_ledger(tmp_path / "run", 8)
