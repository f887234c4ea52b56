"""A real run whose engines join and leave while it goes on; no prompt is lost or trained twice."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path

import pytest

from rlsys.commands.scale import scale
from rlsys.errors import RlsysError
from rlsys.run_folder.folder import RunFolder
from rlsys.run_folder.lock import locked
from rlsys.runtime.room import Demand
from tests.integration.runs import OpenRun, read_metrics, small_run
from tests.integration.test_recovery import Faults, check_ledger

OVERRIDES = ("train.max_staleness=1", "train.num_steps=16", "rollout.max_response_tokens=24")


class Asked:
    """Requests that are made at the end of a step, and whose results a later step waits for."""

    def __init__(self, opened: OpenRun) -> None:
        self.folder = opened.folder
        self.said: list[str] = []
        self.open: asyncio.Future[None]

    async def ask(self, rollout: int) -> None:
        self.open = asyncio.ensure_future(asyncio.to_thread(scale, self.folder, rollout, self.said.append))

    async def is_done(self) -> None:
        await self.open

    async def is_refused(self, why: str) -> None:
        with pytest.raises(RlsysError, match=why):
            await self.open


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("lora", [(), ("learner.lora.rank=4", "learner.lora.alpha=8")], ids=["weights", "adapters"])
def test_from_one_engine_to_two_and_back(tmp_path: Path, lora: tuple[str, ...]) -> None:
    with small_run(tmp_path, [*OVERRIDES, *lora]) as opened, locked(opened.folder):
        prepared = opened.run.prepared
        RunFolder.create(opened.folder, prepared.config, prepared.tokenizer())
        faults, asked = Faults(opened), Asked(opened)
        # Engines of a local Ray share its CPUs; this one wants more than there are.
        faults.pool._demands[2] = Demand("rollout/2", 99.0)
        faults.at = {
            2: lambda: asked.ask(2),
            5: asked.is_done,
            6: lambda: asked.ask(3),
            7: lambda: asked.is_refused("rollout/2 could not join, and the run goes on as before: the cluster has no"),
            8: lambda: asked.ask(5),
            9: lambda: asked.is_refused("rollout.num_workers=5 is more than train.prompts_per_step=4"),
            11: lambda: asked.ask(1),
            13: asked.is_done,
        }
        faults.train()
        assert opened.run.scaling.config.rollout.num_workers == 1
        assert list(faults.pool._workers) == [0]
        assert "rollout/1" not in opened.run.roles.cluster.workers
    assert [text for text in asked.said if "has rollout" in text] == ["the run has rollout=2", "the run has rollout=1"]
    rows = read_metrics(tmp_path / "run")
    assert [row["schedule/engines"] for row in rows if row["step"] in (1, 6, 11, 14, 16)] == [1, 2, 2, 1, 1]
    assert {row.get("schedule/engines_lost") for row in rows[1:]} == {0}
    check_ledger(tmp_path / "run", 16)
    # It joined before step 6, and has its share within two steps.
    shares = by_engine(tmp_path / "run", range(7, 12))
    assert shares[1] >= 0.8 * shares.total() / 2
    assert by_engine(tmp_path / "run", range(15, 17)).keys() == {0}


def by_engine(folder: Path, steps: range) -> Counter[int]:
    lines = [line for step in steps for line in (folder / "rollouts" / f"step-{step:06d}.jsonl").open()]
    return Counter(json.loads(line)["engine"] for line in lines)
