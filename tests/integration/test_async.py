"""Sampling ahead of training, on real engines: what is trained, how stale it is, and that k = 0 is what it was."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from rlsys.build.run import Run
from tests.integration.runs import call_worker, read_metrics, small_run

BEFORE = Path(__file__).parent / "data" / "before_async.json"
LIKE_BEFORE = (
    "seed=3",
    "train.prompts_per_step=6",
    "train.num_steps=6",
    "train.updates_per_step=2",
    "rollout.seeded=true",
)
AHEAD = (
    "train.max_staleness=2",
    "train.prompts_per_step=8",
    "logging.timeline=true",
    "learner.lr=1e-3",
    "rollout.inflight_kv=keep",  # tails of responses then fit no version: they must not be taken for a broken broadcast
)


@pytest.mark.long
def test_the_synchronous_losses_are_those_from_before(tmp_path: Path) -> None:
    """Step for step, with a fixed seed: measured before there was a scheduler, with padded batches."""
    with small_run(tmp_path, LIKE_BEFORE) as opened:
        # vLLM turns a request's generator back after a part of a prompt, which kills an engine on CPUs.
        assert not call_worker(opened.run.roles.rollout._workers[0], takes_prompts_in_parts)
        opened.train()
    rows = read_metrics(tmp_path / "run")[1:]
    expected = json.loads(BEFORE.read_text())["steps"]
    assert len(rows) == len(expected) == 6
    for row, before in zip(rows, expected, strict=True):
        assert row["reward/total/mean"] == before["reward/total/mean"]  # the same responses
        for key, value in before.items():
            assert row[key] == pytest.approx(value, rel=1e-3, abs=1e-6), (row["step"], key)
        assert row["rollout/staleness/max"] == 0
        assert row["schedule/restarted"] == row["schedule/skipped"] == 0


def takes_prompts_in_parts(worker: Any) -> bool:
    return bool(worker._engine._core.vllm_config.scheduler_config.enable_chunked_prefill)


@pytest.mark.timeout(900)
def test_ahead_of_training_and_cut_off_in_between(tmp_path: Path) -> None:
    """Every prompt is trained once, within the bound, also those that were on their way at the checkpoint."""
    folder = tmp_path / "run"
    with small_run(tmp_path, [*AHEAD, "train.num_steps=9", "checkpoint.every=3", "checkpoint.keep=9"]) as opened:
        _wait_for_finished(opened.run, before_step=3)
        opened.train()
        assert opened.run.orchestrator.pending_positions() == []  # nothing was sampled that no step would train
    state = json.loads((folder / "checkpoints" / "step-000003" / "state.json").read_text())
    ahead = [*state["prompts_pending"], *state["prompts_finished"]]
    assert 0 < len(ahead) <= 2 * 8
    assert state["prompt_cursor"] == 3 * 8 + len(ahead)
    assert state["ledger"]["trained"] == 3 * 8
    _check_steps(folder, 9)
    _check_timeline(json.loads((folder / "timeline.json").read_text()))

    for step in (6, 9):
        (folder / "checkpoints" / f"step-{step:06d}" / "state.json").unlink()
    before = _sampled(folder)
    with small_run(tmp_path, [*AHEAD, "train.num_steps=6", "resume=auto"]) as opened:
        assert opened.run.state.step == 3
        finished = opened.run.orchestrator.finished(3)
        assert [position for position, _ in finished] == state["prompts_finished"]
        opened.train()
    # What was finished was not sampled again, and nothing but that was kept.
    kept = {group.rollout.prompt.index for _, group in finished}
    after = _sampled(folder)
    assert kept
    for step in (4, 5, 6):
        for prompt, responses in after[step].items():
            assert (responses in before[4].values() or responses in before[5].values()) == (prompt in kept)
    assert [row["step"] for row in read_metrics(folder)] == [0, 1, 2, 3, 4, 5, 6]
    _check_steps(folder, 6)


def _wait_for_finished(run: Run, *, before_step: int) -> None:
    """Have the run save a step only once some group ahead of it is finished, however slow the engine is."""
    save = run.checkpoints.save

    async def save_later(step: int) -> None:
        async with asyncio.timeout(120):
            while step == before_step and not run.orchestrator.finished(step):
                await asyncio.sleep(0.05)
        await save(step)

    run.checkpoints.save = save_later  # type: ignore[method-assign]


def _sampled(folder: Path) -> dict[int, dict[int, list[Any]]]:
    """When each prompt's responses began, and what they were, by step."""
    found: dict[int, dict[int, list[Any]]] = {}
    for path in sorted((folder / "rollouts").glob("step-*.jsonl")):
        for row in map(json.loads, path.read_text().splitlines()):
            of_step = found.setdefault(int(path.stem.removeprefix("step-")), {})
            of_step.setdefault(row["prompt_index"], []).append((row["started"], row["response"]))
    return found


def _check_steps(folder: Path, num_steps: int) -> None:
    """All the prompts of the data's order, once each, none too stale."""
    rows = read_metrics(folder)[1 : num_steps + 1]
    differences = [row["sync/logprob_abs_diff/p999"] for row in rows]
    compared = [difference for difference in differences if difference is not None]
    assert len(compared) >= num_steps // 2  # an answer may come a step late
    assert 0 < max(compared) < 1e-4
    trained: Counter[int] = Counter()
    stale = []
    for row in rows:
        lines = (folder / "rollouts" / f"step-{row['step']:06d}.jsonl").read_text().splitlines()
        rollouts = [json.loads(line) for line in lines]
        trained.update({rollout["group_id"]: rollout["prompt_index"] for rollout in rollouts}.values())
        stale += [row["step"] - 1 - rollout["policy_version"] for rollout in rollouts]
        assert all(rollout["started"] < rollout["finished"] for rollout in rollouts)
        assert row["groups/discarded"] == 0
        assert {"idle/rollout", "idle/learner", "idle/scoring", "schedule/ready_groups"} <= set(row)
    assert 0 <= min(stale) <= max(stale) <= 2
    assert max(stale) > 0  # it did sample ahead
    assert len(trained) == num_steps * 8
    assert set(trained.values()) == {1}


def _check_timeline(events: list[dict[str, Any]]) -> None:
    lanes = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    spans = [event for event in events if event["ph"] == "X"]
    names = {lane: {event["name"] for event in spans if lanes[event["tid"]] == lane} for lane in lanes.values()}
    assert names["learner/0"] >= {"pack", "forward", "backward", "optimizer", "broadcast", "idle"}
    assert names["rollout/0"] >= {"generate", "reload"}
    assert "score" in names["scoring/0"]
    training = [event for event in spans if event["name"] == "forward"]
    sampling = [event for event in spans if event["name"] == "generate"]
    both = [a for a in training for b in sampling if a["ts"] < b["ts"] + b["dur"] and b["ts"] < a["ts"] + a["dur"]]
    assert both  # learner and engine worked at the same time
