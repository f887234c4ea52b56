"""The books of a run that has ended: what became of every prompt, and whether it has learnt."""

from __future__ import annotations

import json
from collections import Counter
from statistics import mean
from typing import Any

from rlsys.run_folder.checkpoint import load_state, newest
from tests.chaos.job import NUM_PROMPTS, PROMPTS_PER_STEP, SAMPLES, Job

MAX_STALENESS = 1


def audit(job: Job) -> dict[str, Any]:
    """Return the sums of the run's books."""
    rows = [json.loads(line) for line in job.lines()]
    steps = rows[-1]["step"]
    trained: Counter[int] = Counter()
    stale = 0
    for step in range(1, steps + 1):
        lines = (job.run_dir / "rollouts" / f"step-{step:06d}.jsonl").read_text().splitlines()
        rollouts = [json.loads(line) for line in lines]
        trained.update({rollout["group_id"]: rollout["prompt_index"] for rollout in rollouts}.values())
        stale += sum(not 0 <= step - 1 - rollout["policy_version"] <= MAX_STALENESS for rollout in rollouts)
        assert len(rollouts) <= PROMPTS_PER_STEP * SAMPLES
    folder = newest(job.run_dir)
    assert folder is not None
    state = load_state(folder)
    ledger = state.ledger
    accounted = sum(ledger[name] for name in ("trained", "filtered", "finished", "in_flight"))
    return {
        "steps": steps,
        "every_step_once": [row["step"] for row in rows] == list(range(steps + 1)),
        "policy_version": rows[-1]["policy_version"],
        "checkpoint": state.step,
        "ledger": ledger,
        "prompts_issued": state.prompt_cursor,
        "prompts_lost": state.prompt_cursor - accounted,
        "prompts_trained": len(trained),
        "trained_twice": sum(count - 1 for count in trained.values()),
        "missing_of_steps": steps * PROMPTS_PER_STEP - trained.total(),
        "trained_too_old": stale,
        "all_prompts_of_one_epoch": state.prompt_cursor <= NUM_PROMPTS,
        "reward_at_first": mean(row["reward/total/mean"] for row in rows[1:6]),
        "reward_at_last": mean(row["reward/total/mean"] for row in rows[-5:]),
    }


def check(found: dict[str, Any]) -> None:
    """Raise AssertionError unless nothing was lost, nothing trained twice, and the policy has learnt."""
    steps = found["steps"]
    assert found["policy_version"] == found["checkpoint"] == steps, found
    assert found["every_step_once"], found
    assert found["all_prompts_of_one_epoch"], found
    lost = {name: found[name] for name in ("prompts_lost", "trained_twice", "missing_of_steps", "trained_too_old")}
    assert set(lost.values()) == {0}, lost
    assert found["prompts_trained"] == found["ledger"]["trained"] == steps * PROMPTS_PER_STEP, found
    assert (found["survived"], found["imports"], found["left_by_ray"]) == (found["faults"], 0, []), found
    assert found["reward_at_last"] > found["reward_at_first"] + 0.5, found  # a policy that learns nothing stays
