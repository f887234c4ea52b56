"""Small real runs for the integration tests: tiny models, a handful of steps."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import Coroutine, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from rlsys.build.environment import worker_imports
from rlsys.build.placement import worker_demands
from rlsys.build.run import Run, connect, open_run
from rlsys.config.compose import load_config
from rlsys.config.schema import Config
from rlsys.metrics.display import Display
from rlsys.orchestrator.from_config import sampling_params_of
from rlsys.preflight.prepare import prepare
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.preimport import Imports, Preimport
from rlsys.train import train
from rlsys.types import ScoredGroup

T = TypeVar("T")
# Keeps its event loop from call to call, for as long as the tests' process lives.
RUNNER = asyncio.Runner()

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


def wait(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine to its end."""
    return RUNNER.run(work)


@dataclass(frozen=True)
class OpenRun:
    """A run of the real loop's parts, and its folder."""

    run: Run
    folder: Path

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """Run a coroutine beside the run's background tasks."""
        return wait(self.run.roles.cluster.calls.background.supervise(work))

    def train(self) -> None:
        """Go through the whole loop."""
        self.wait(train(self.run))


class KeptImports(Preimport):
    """Fork servers that live as long as the tests' process: one run after the other forks its workers from them.

    Their forks do not have the run's tag, so its guardian does not find them: Ray ends them when it is left.
    """

    _servers: ClassVar[dict[tuple[Any, ...], Preimport]] = {}

    def __init__(self, imports: Mapping[str, Imports]) -> None:
        self.tag = uuid.uuid4().hex
        self._imports = imports
        self._started = {}  # none of its own

    def start_all(self) -> None:
        """Start the servers that no run before has started."""
        for wanted in self._imports.values():
            if _key(wanted) not in self._servers:
                self._servers[_key(wanted)] = Preimport({"worker": wanted})

    def options(self, role: str) -> dict[str, str]:
        """Return the entries of a Ray runtime environment with which a worker of the role is forked."""
        wanted = self._imports.get(role)
        return {} if wanted is None else self._servers[_key(wanted)].options("worker")

    def close(self) -> None:
        """Keep the servers."""


def _key(imports: Imports) -> tuple[Any, ...]:
    env = {name: value for name, value in imports.env.items() if name != "OMP_NUM_THREADS"}  # a fork sets its own
    return imports.modules, *sorted(env.items())


@contextlib.contextmanager
def connected(config: Config, *roles: str) -> Iterator[Cluster]:
    """Open a Ray of its own with room for the workers of some roles."""
    wanted, imports = worker_demands(config), worker_imports(config)
    preimport = KeptImports({role: imports[role] for role in roles})
    preimport.start_all()
    with connect(config, {role: wanted[role] for role in roles}, preimport=preimport) as cluster:
        yield cluster


@contextlib.contextmanager
def small_run(tmp_path: Path, overrides: Sequence[str] = ()) -> Iterator[OpenRun]:
    """Open a run of the real loop's parts, and close it."""
    config = load_config([*SMALL, f"model.cache_dir={tmp_path}/models", *overrides])
    prepared = prepare(config)
    display = Display(config.train.num_steps, live=False)
    opening = open_run(prepared, tmp_path / "run", display, KeptImports(worker_imports(config)))
    run = wait(opening.__aenter__())
    try:
        yield OpenRun(run, tmp_path / "run")
    except BaseException as error:
        wait(opening.__aexit__(type(error), error, error.__traceback__))
        raise
    else:
        wait(opening.__aexit__(None, None, None))


def sampled(opened: OpenRun, count: int, policy_version: int) -> list[ScoredGroup]:
    """Sample and score the next prompts outside the loop."""
    run = opened.run
    prompts = [run.prompts.take()[1] for _ in range(count)]
    sampling = sampling_params_of(run.prepared.config)[0]
    return opened.wait(run.sampler.sample_prompts(prompts, sampling, policy_version=policy_version))


def kill(group: Any) -> None:
    """End the processes of a learner's or critic's ranks."""
    import ray

    for worker in group._workers.values():
        ray.kill(worker)


def call_worker(worker: Any, function: Any) -> Any:
    """Run `function(worker_object)` inside a worker's process."""
    import ray

    return ray.get(worker.__ray_call__.remote(function), timeout=120)


def read_metrics(run_dir: Path) -> list[dict[str, Any]]:
    """The rows of a run's metrics.jsonl."""
    import json

    return [json.loads(line) for line in (run_dir / "metrics.jsonl").read_text().splitlines()]
