"""Folders as runs leave them, made up: what stands in a row follows from its step, group and sample by rules below."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from pathlib import Path
from typing import Any

WORDS = """so we add the first number and second then carry one because it is more than ten which gives us answer of
check again total remaining apples each bag holds price minus cost therefore result equals let x be half""".split()  # noqa: SIM905 - a vocabulary reads better as prose

EPOCH_S = 1_790_000_000.0


@dataclass(frozen=True)
class Recipe:
    """Shape of a made-up run. Steps count from 1; `num_words` is a response's length at step 0."""

    num_steps: int = 5
    num_groups: int = 4
    num_samples: int = 4
    num_words: int = 12
    token_groups: int = 2  # of a step, written with their tokens
    with_timeline: bool = True
    seed: int = 0

    @property
    def num_rollouts(self) -> int:
        return self.num_steps * self.num_groups * self.num_samples


def write_run(folder: Path, recipe: Recipe, config: dict[str, Any] | None = None, tokenizer: Any = None) -> Path:
    """Everything that a report reads. Without a tokenizer no tokens are written."""
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(json.dumps(config if config is not None else CONFIG))  # JSON is YAML
    write_lines(folder / "metrics.jsonl", [metrics(recipe, step) for step in range(recipe.num_steps + 1)])
    (folder / "rollouts").mkdir()
    chance = random.Random(recipe.seed)
    for step in range(1, recipe.num_steps + 1):
        rows = [
            rollout(recipe, step, group, sample, chance, tokenizer)
            for group in range(recipe.num_groups)
            for sample in range(recipe.num_samples)
        ]
        write_lines(folder / "rollouts" / f"step-{step:06d}.jsonl", rows)
    if recipe.with_timeline:
        (folder / "timeline.json").write_text(timeline(recipe.num_steps))
    if tokenizer is not None:
        tokenizer.save_pretrained(folder / "tokenizer")
    return folder


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


CONFIG: dict[str, Any] = {
    "seed": 3,
    "model": {"path": "Qwen/Qwen2.5-0.5B"},
    "data": {"train": "gsm8k"},
    "train": {"num_steps": 5, "prompts_per_step": 4, "samples_per_prompt": 4, "max_staleness": 1},
    "learner": {"lr": 1e-6, "num_workers": 2},
    "algorithm": {
        "advantage": {"name": "grpo"},
        "policy_loss": {"name": "ppo_clip", "clip_high": 0.28},
        "aggregation": {"name": "token_mean"},
        "corrections": [{"name": "truncate", "high": 2.0}],
        "kl": {"coef": 0.04, "name": "k3", "apply_to": "loss"},
    },
    "rewards": [{"name": "math_answer", "weight": 1.0}, {"name": "format", "weight": 0.2}],
}


def metrics(recipe: Recipe, step: int) -> dict[str, Any]:
    """Step 0 is the evaluation before training."""
    progress = step / max(recipe.num_steps, 1)
    wave = 0.03 * math.sin(1.7 * step + recipe.seed)
    row: dict[str, Any] = {"step": step, "policy_version": step}
    if step % 5 == 0:
        row |= {"eval/accuracy": round(0.4 + 0.3 * progress, 3), "time/eval_s": 1.5}
    if step == 0:
        return row
    return row | {
        "reward/total/mean": 0.35 + 0.4 * progress + wave,
        "reward/total/std": 0.45 - 0.1 * progress,
        "reward/math_answer/mean": 0.3 + 0.4 * progress + wave,
        "reward/format/mean": 0.8 + 0.15 * progress,
        "reward/math_answer/timeout": 0.0,
        "policy/kl_ref": 0.002 * step,
        "policy/entropy": 1.2 - 0.5 * progress + wave,
        "policy/clip_fraction": 0.01 + 0.01 * progress,
        "policy/grad_norm": None if step == 3 else 1.1 + wave,  # null: what a step that was not applied leaves
        "rollout/response_tokens/mean": 100 + 40 * progress,
        "rollout/truncated_fraction": 0.02,
        "rollout/staleness/mean": 0.8,
        "rollout/staleness/max": 1.0,
        "sync/logprob_abs_diff/mean": 3e-7 * (1 + 4 * abs(wave)),
        "sync/logprob_abs_diff/p999": 4e-5 * (1 + 9 * abs(wave)),
        "correction/ratio/mean": 1.0 + wave / 100,
        "correction/ratio/max": 1.3,
        "throughput/tokens_per_s": 5000 + 800 * wave,
        "time/rollout_s": 2.0 + wave,
        "time/scoring_s": 0.2,
        "time/update_s": 1.5,
        "time/broadcast_s": 0.1,
        "time/step_s": 4.1,
        "idle/rollout": 0.4,
        "idle/learner": 0.5,
        "my/own_number": 7.0 * step,
    }


def reward_of(step: int, group: int, sample: int) -> float | None:
    """None for the first sample of every group of step 2, whose reward function timed out; else sample / 4 or 1."""
    if step == 2 and sample == 0:
        return None
    return 1.0 if group == 0 else (sample % 4) / 4


def length_of(step: int, sample: int) -> int:
    """Tokens of a response."""
    return 10 * step + sample


def rollout(
    recipe: Recipe, step: int, group: int, sample: int, chance: random.Random, tokenizer: Any
) -> dict[str, Any]:
    reward = reward_of(step, group, sample)
    outcome = "ok" if reward is not None else "timeout"
    response = " ".join(chance.choices(WORDS, k=recipe.num_words + step)) + f" #### {step}{group}{sample} é🙂"
    started = EPOCH_S + 4.0 * step
    row: dict[str, Any] = {
        "group_id": recipe.num_groups * (step - 1) + group,
        "prompt_index": group,
        "prompt": prompt_of(step, group),
        "response": response,
        "response_tokens": length_of(step, sample),
        "finish_reason": "length" if sample == 3 else "stop",
        "policy_version": step - 1,
        "engine": group % 2,
        "started": started,
        "finished": started + 1.25 + 0.01 * sample,
        "reward": reward,
        "outcome": outcome,
        "advantage": None if reward is None or group == 1 else reward - 0.5,
        "parts": {"math_answer": {"value": reward, "outcome": outcome}, "format": {"value": 1.0, "outcome": "ok"}},
    }
    if tokenizer is not None and group < recipe.token_groups:
        ids = [int(token) for token in tokenizer(response)["input_ids"]]
        tokens: dict[str, Any] = {"ids": ids, "logprobs": [round(-chance.expovariate(1.5), 4) for _ in ids]}
        if group == 1:  # as with a critic: only tokens have advantages
            tokens["advantages"] = [round(chance.gauss(0.0, 0.4), 4) for _ in ids]
        row["tokens"] = tokens
    return row


def prompt_of(step: int, group: int) -> str | list[dict[str, str]]:
    """Group 1 is a conversation; the prompt of group 3 speaks of zebras in step 4 alone."""
    question = (
        f"Question {group} of step {step}: how many {'zebras' if (step, group) == (4, 3) else 'apples'} are left?"
    )
    if group == 1:
        return [{"role": "system", "content": "Reason first."}, {"role": "user", "content": question}]
    return question


def timeline(num_steps: int, first_step: int = 1, step_s: float = 4.0) -> str:
    """Two lanes: an engine that generates, a learner that trains and hands out; the last step ends the file."""
    lanes = ["rollout/0", "learner/0"]
    events: list[dict[str, Any]] = [
        {"name": "thread_name", "ph": "M", "pid": 1, "tid": lane, "args": {"name": name}}
        for lane, name in enumerate(lanes)
    ]

    def span(name: str, lane: int, start: float, seconds: float) -> None:
        ts, dur = round(1e6 * (EPOCH_S + start)), round(1e6 * seconds)
        events.append({"name": name, "ph": "X", "pid": 1, "tid": lane, "ts": ts, "dur": dur, "cat": name})

    span("broadcast", 1, 0.0, 0.1)  # the policy that the run starts from
    for step in range(first_step, first_step + num_steps):
        start = 0.1 + step_s * (step - first_step)
        span("generate", 0, start, 0.5 * step_s)
        span("idle", 0, start + 0.5 * step_s, 0.5 * step_s)
        span("forward", 1, start + 0.5 * step_s, 0.2 * step_s)
        span("backward", 1, start + 0.7 * step_s, 0.2 * step_s)
        span("broadcast", 1, start + 0.95 * step_s, 0.05 * step_s)
    return "[\n" + ",\n".join(map(json.dumps, events)) + "\n]\n"
