"""Episodes on real engines: exact tokens through many turns, new weights between them, and lost workers."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from rlsys.cli import execute
from rlsys.train import train
from rlsys.types import Trajectory
from tests.integration.runs import OpenRun, read_metrics, sampled, small_run, wait
from tests.integration.test_recovery import pid_of

GAME = (
    "data.train=guess_number",
    "data.eval=null",
    "environment=guess_number",
    "rewards=[]",
    "model.build.tokenizer.alphabet='0123456789higherlowus'",
    "rollout.max_response_tokens=4",
    "train.num_steps=3",
    "train.prompts_per_step=4",
)
# Any message is an answer, so that episodes are as long as they may be.
ECHO = """
from rlsys.environments import Opening, Turn


class Echo:
    def start(self, *, secret, **_):
        self.number, self.turns = secret, 0
        return Opening()

    def step(self, message):
        self.turns += 1
        if self.turns == 4:
            return Turn(reward=float(len(message["content"])), done=True)
        return Turn([{"role": "user", "content": str(self.turns)}], metrics={"echoes": 1.0})
"""


def echo(tmp_path: Path) -> tuple[str, ...]:
    (tmp_path / "echo.py").write_text(ECHO)
    return (*GAME, f"environment={tmp_path}/echo.py:Echo", "episodes.on_end.max_tokens=mask")


def rows_of(opened: OpenRun, step: int) -> list[dict[str, Any]]:
    lines = (opened.folder / "rollouts" / f"step-{step:06d}.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


def test_a_run_trains_episodes_and_writes_them(tmp_path: Path) -> None:
    with small_run(tmp_path, echo(tmp_path)) as opened:
        opened.train()
        metrics = read_metrics(opened.folder)
        assert [row["step"] for row in metrics] == [0, 1, 2, 3]
        rows = rows_of(opened, 3)
    assert len(rows) == 16
    for row in rows:
        episode = row["episode"]
        assert episode["end"] in ("completed", "max_tokens")
        assert len(episode["turns"]) == episode["num_turns"] <= 4
        assert episode["messages"][0]["role"] == "assistant"
        assert row["parts"]["environment"]["outcome"] == "ok"
        for turn, after in zip(episode["turns"], episode["turns"][1:], strict=False):
            assert turn["start"] < turn["end"] < after["start"]


def test_the_engine_s_log_probabilities_are_the_learner_s_at_every_turn(tmp_path: Path) -> None:
    """What lies between the turns was in the engine's prompt as it is in the row: else they would differ."""
    long_enough = ("rollout.max_response_tokens=40", "model.build.max_context=512")  # for messages to end by chance
    with small_run(tmp_path, [*echo(tmp_path), *long_enough]) as opened:
        run = opened.run
        opened.wait(run.start())
        groups = sampled(opened, 4, policy_version=0)

        async def read() -> tuple[list[Trajectory], list[np.ndarray]]:
            fetched = [await run.roles.rollout.trajectories(group.rollout) for group in groups]
            trajectories = [each for group in fetched for each in group]
            probes = [await run.roles.rollout.begin_probe(each.token_ids)["rollout/0"] for each in trajectories]
            return trajectories, [logprobs for _, logprobs in probes]

        trajectories, probed = opened.wait(read())
    assert max(len(each.episode.turns) for each in trajectories if each.episode) == 4
    for each, logprobs in zip(trajectories, probed, strict=True):
        assert each.episode is not None
        mask = each.loss_mask[1:]
        np.testing.assert_allclose(each.behavior_logprobs[1:][mask], logprobs[mask], atol=2e-4)


def test_a_lost_episode_worker_and_a_lost_engine_are_replaced(tmp_path: Path) -> None:
    more = ("rollout.num_workers=2", "train.num_steps=6", "train.max_staleness=1")
    with small_run(tmp_path, [*echo(tmp_path), *more]) as opened:
        run = opened.run
        record, pids = run.recorder.record, {1: pid_of(run, "episodes/0"), 3: pid_of(run, "rollout/0")}

        async def recorded(step: int, *args: Any) -> None:
            await record(step, *args)
            if step in pids:
                os.kill(pids[step], signal.SIGKILL)

        run.recorder.record = recorded  # type: ignore[method-assign]
        wait(run.supervise(train(run)))
        metrics = read_metrics(opened.folder)
    assert [row["step"] for row in metrics] == list(range(7))


@pytest.mark.long
def test_it_learns(tmp_path: Path) -> None:
    execute(["train", "experiment=guess_number", f"run_dir={tmp_path}/run", "logging.trackers=[]"])
    found = [row["eval/accuracy"] for row in read_metrics(tmp_path / "run") if row.get("eval/accuracy") is not None]
    assert found[-1] >= found[0] + 0.3
    assert found[-1] >= 0.7
