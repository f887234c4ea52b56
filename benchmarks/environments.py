"""What episodes cost: one turn in an environment's process against a response alone, on the same engine.

python -m benchmarks.environments [--repeats 5] [--write]

A policy with random weights answers 32 prompts with 8 responses each, in turn alone and as episodes of one turn, each
with an environment in a process of its own; both are scored. Responses end by chance, so tokens per second are
compared.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import report
from benchmarks.side import end_on_sigterm
from rlsys.build.placement import worker_demands
from rlsys.build.run import connect, start_episodes, start_rollout, start_scoring
from rlsys.config.compose import load_config
from rlsys.orchestrator.from_config import sampler_of
from rlsys.orchestrator.sampling import GroupSampler
from rlsys.preflight.prepare import prepare
from rlsys.preflight.prepared import Prepared
from rlsys.rollout.setup import LOADED_VERSION
from rlsys.types import Prompt, Sampling

SAMPLING = Sampling(temperature=1.0, max_response_tokens=192, samples_per_prompt=8)
OPTIONS = (
    "experiment=quickstart",
    "data.eval=null",
    "eval.every=0",
    "model.build.max_context=256",
    "model.build.hidden_size=256",
    "model.build.intermediate_size=768",
    "model.build.tokenizer.alphabet=''",
    "model.build.warmup.max_steps=0",
    "rollout.max_response_tokens=192",
    "rollout.kv_cache_gib=1",
    f"environment={Path(__file__).with_name('one_turn.py')}:OneTurn",
)
NUM_PROMPTS = 32
GOAL = 1.05


def main() -> None:
    """Measure and report."""
    end_on_sigterm()
    parser = argparse.ArgumentParser("python -m benchmarks.environments", description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    header = report.header("benchmarks.environments")
    with tempfile.TemporaryDirectory(prefix="rlsys-environments-") as folder:
        prepared = prepare(load_config([*OPTIONS, f"model.cache_dir={folder}"]))
        found = asyncio.run(measure(prepared, options.repeats))
    shown = report.table("tokens per second", ["sampling", "median"])
    for name in ("alone", "episodes"):
        shown.add_row(name, report.number(found[name], 0))
    report.show(shown)
    print(f"an episode of one turn costs {found['ratio']:.3f} of a response alone (goal {GOAL})")
    if options.write:
        print(f"written: {report.write('environments', {**header, **found})}")


async def measure(prepared: Prepared, repeats: int) -> dict[str, Any]:
    """Return medians of tokens per second, and their ratio."""
    config = prepared.config
    every = worker_demands(config)
    wanted = {role: every[role] for role in ("rollout", "scoring", "episodes")}
    with connect(config, wanted) as cluster:
        rollout = start_rollout(cluster, prepared, wanted["rollout"])
        scoring = start_scoring(cluster, prepared, wanted["scoring"])
        episodes = start_episodes(cluster, prepared, wanted["episodes"], rollout)
        assert episodes is not None
        deadline_s = config.cluster.startup_deadline_s
        await cluster.room.wait(deadline_s)
        await asyncio.gather(*(role.start(deadline_s) for role in (rollout, scoring, episodes)))
        samplers = {
            name: sampler_of(config, pool, scoring.queue) for name, pool in (("alone", rollout), ("episodes", episodes))
        }
        prompts = prepared.train_prompts[:NUM_PROMPTS]
        speeds: dict[str, list[float]] = {name: [] for name in samplers}

        async def all_repeats() -> None:
            for repeat in range(repeats + 1):
                for name, sampler in samplers.items():
                    speed = await _speed(sampler, prompts)
                    if repeat:  # the first warms up
                        speeds[name].append(speed)

        await cluster.calls.background.supervise(all_repeats())
        await rollout.stop(30.0)
    medians = {name: median(values) for name, values in speeds.items()}
    return {**medians, "ratio": medians["alone"] / medians["episodes"], "goal": GOAL, "repeats": speeds}


async def _speed(sampler: GroupSampler, prompts: list[Prompt]) -> float:
    started = time.perf_counter()
    groups = await sampler.sample_prompts(prompts, SAMPLING, policy_version=LOADED_VERSION)
    tokens = sum(summary.num_response_tokens for group in groups for summary in group.rollout.summaries)
    return tokens / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
