"""Real workers that are killed in a real run come back as they were; no prompt is lost or trained twice.

`tests/chaos` does it at random; here are moments and states that chance may not find.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray

from rlsys.build.environment import worker_imports
from rlsys.build.run import Run
from rlsys.config.compose import load_config
from rlsys.metrics.display import Display
from rlsys.preflight.prepare import prepare
from rlsys.runtime.preimport import Preimport
from rlsys.train import train, train_to_the_end
from tests.integration.runs import SMALL, OpenRun, call_worker, read_metrics, small_run, wait

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

    async def send(self, how: signal.Signals, *names: str) -> None:
        for name in names:
            os.kill(pid_of(self.run, name), how)

    async def all_serve(self) -> None:
        """Sampling goes on meanwhile."""
        async with asyncio.timeout(DEADLINE_S):
            while len(self.run.sampler.router.load) < 2:
                await asyncio.sleep(0.1)

    def train(self) -> None:
        wait(self.run.supervise(train(self.run)))


def living(kind: str) -> list[int]:
    """The processes of a class of workers, in the order of their starts."""
    actors = [actor for actor in ray._private.state.actors().values() if actor["ActorClassName"] == kind]
    return [actor["Pid"] for actor in sorted(actors, key=lambda actor: actor["StartTime"]) if actor["State"] == "ALIVE"]


def pid_of(run: Run, name: str) -> int:
    pid: int = call_worker(run.roles.cluster.workers[name], lambda _: os.getpid())
    return pid


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


@pytest.mark.long
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

        victim = pid_of(faults.run, "rollout/1")

        async def kill_in_broadcast() -> None:
            broadcaster._sender.begin_send_weights = kill_and_send

        faults.at = {
            2: kill_in_broadcast,
            4: faults.all_serve,
            6: lambda: faults.send(signal.SIGKILL, "rollout/0", "rollout/1"),
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
        faults.at = {3: lambda: faults.send(signal.SIGSTOP, "rollout/1"), 8: faults.all_serve}
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
        faults.at = {2: lambda: faults.send(signal.SIGKILL, "rollout/0"), 4: faults.all_serve}
        faults.train()
        assert opened.run.supervisor.num_replaced == 1
    check_ledger(tmp_path / "run", 8)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_scoring_and_reference_workers_that_are_killed_are_replaced(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are found lost when somebody needs them. A new reference worker gets the weights of its last refresh."""
    given = ["scoring.num_workers=2", "reference.num_workers=2", "algorithm.kl.coef=0.01", "train.num_steps=10"]
    given += ["algorithm.refresh.every=2", "algorithm.refresh.alpha=0.6"]
    with small_run(tmp_path, [TWO[1], *given]) as opened:
        faults = Faults(opened)

        def replaced() -> list[str]:
            return sorted(r.message.partition(" ")[0] for r in caplog.records if "works again" in r.message)

        async def are_replaced(count: int) -> None:
            async with asyncio.timeout(DEADLINE_S):
                while len(replaced()) < count:
                    await asyncio.sleep(0.1)

        faults.at = {
            1: lambda: faults.send(signal.SIGKILL, "scoring/0", "reference/1"),
            5: lambda: are_replaced(2),
            6: lambda: faults.send(signal.SIGKILL, "scoring/1", "reference/0"),
            9: lambda: are_replaced(4),
        }
        faults.train()
        assert replaced() == ["reference/0", "reference/1", "scoring/0", "scoring/1"]
        workers = opened.run.roles.cluster.workers
        one, other = (call_worker(workers[f"reference/{number}"], _weights) for number in range(2))
        assert all((one[name] == other[name]).all() for name in one)
    check_ledger(tmp_path / "run", 10)


def _weights(worker: Any) -> dict[str, Any]:
    return {name: p.numpy() for name, p in worker._policy.hf.named_parameters()}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_that_loses_a_learner_rank_starts_again(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """From its newest checkpoint, with everything that was finished by then; what came after it is trained again."""
    given = ["learner.num_workers=2", "checkpoint.every=2", *TWO[1:]]
    config = load_config([*SMALL, f"model.cache_dir={tmp_path}/models", *given])
    run_dir, lives, parents = tmp_path / "run", [], set()

    async def kill_ranks() -> None:
        for after, rank in ((5, 1), (8, 0)):
            while not lives or not (rows := read_metrics(run_dir)) or rows[-1]["step"] < after:
                await asyncio.sleep(0.02)
            os.kill(living("PolicyRank")[rank], signal.SIGKILL)
            lives.clear()

    async def main() -> None:
        killing = asyncio.ensure_future(kill_ranks())
        display = Display(config.train.num_steps, live=False)
        with Preimport(worker_imports(config)) as imports:

            def note() -> None:
                lives.append(1)
                parents.update(psutil.Process(pid).ppid() for pid in living("PolicyRank"))

            await train_to_the_end(prepare(config), run_dir, display, imports, on_start=note)
            assert parents <= set(imports.pids)  # nothing was imported again
        await killing

    wait(main())
    assert caplog.text.count("the run is started again, from its newest checkpoint") == 2
    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == list(range(13))
    check_ledger(run_dir, 12)
