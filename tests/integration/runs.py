"""Small real runs for the integration tests: tiny models, a handful of steps."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlsys.build.run import Run, open_run, sampling_plan
from rlsys.config.compose import load_config
from rlsys.metrics.display import Display
from rlsys.preflight.prepare import prepare
from rlsys.types import Reward, RolloutGroup

SMALL = (
    "experiment=quickstart",
    "train.prompts_per_step=4",
    "train.samples_per_prompt=4",
    "train.num_steps=3",
    "rollout.max_response_tokens=8",
    "rollout.kv_cache_gib=0.25",
    "rollout.max_num_seqs=64",
    "learner.lr=3e-3",
    "learner.lr_schedule=constant",
    "learner.warmup_steps=0",
    "train.updates_per_step=1",
    "rewards=[{name:target_length,weight:1.0,target:4}]",
    "eval.every=0",
    "logging.trackers=[]",
    "model.build.max_context=128",
    "model.build.warmup.max_steps=0",
    "model.build.num_layers=2",
)


@contextlib.contextmanager
def small_run(tmp_path: Path, overrides: Sequence[str] = ()) -> Iterator[Run]:
    """A run of the real loop's parts, opened and closed."""
    config = load_config([*SMALL, f"model.cache_dir={tmp_path}/models", *overrides])
    prepared = prepare(config)
    with open_run(prepared, tmp_path / "run", Display(config.train.num_steps, live=False)) as run:
        yield run


def sampled(run: Run, count: int, policy_version: int) -> tuple[list[RolloutGroup], list[list[Reward]]]:
    """The next prompts, sampled and scored outside the loop."""
    prompts = [run.prompts.take()[1] for _ in range(count)]
    return run.sampler.complete(prompts, sampling_plan(run.config)[0], policy_version)


def references(run: Run, groups: Sequence[RolloutGroup]) -> tuple[tuple[Any, ...], list[list[float]]]:
    """Of each group a reference to its reference log-probabilities, and the sums of the divergence."""
    assert run.reference is not None
    sums, refs = run.reference.begin_logprobs(0, groups)
    return tuple(refs), run.calls.gather({"reference/0": sums}, what="reference", deadline_s=120)["reference/0"]


def call_worker(worker: Any, function: Any) -> Any:
    """Run `function(worker_object)` inside a worker's process."""
    import ray

    return ray.get(worker.__ray_call__.remote(function), timeout=120)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    import json

    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
