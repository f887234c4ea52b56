"""The training loop: sample, estimate, update, broadcast, and again; and its start after workers were lost."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rlsys.build.run import Run, open_run
from rlsys.errors import DeadlineError, LostDataError, WorkerDiedError
from rlsys.metrics.display import Display
from rlsys.preflight.prepared import Prepared
from rlsys.runtime.preimport import Preimport
from rlsys.runtime.restarts import Restarts

logger = logging.getLogger(__name__)


async def train(run: Run) -> None:
    """Train until `train.num_steps`.

    Step s makes policy version s. It trains groups that were sampled under version s - 1 or, with
    `train.max_staleness=k`, under up to k versions before that: sampling then goes on while everything below waits.
    """
    await run.start()  # the engines get the weights; evaluation before training
    for step in run.steps():
        batch = await run.orchestrator.next_batch(step)  # groups, sampled, scored and referenced
        experience = await run.experience.build(batch)  # values, advantages, loss weights
        run.recorder.begin(step, batch, experience)
        update = await run.learners.update(experience, step)  # policy and critic
        broadcast = await run.weights.broadcast(step)  # every engine serves the new version
        await run.reference.refresh(step)
        evaluation = await run.evaluation.evaluate(step)
        await run.recorder.record(step, batch, experience, update, broadcast, evaluation)
        await run.checkpoints.save(step)
        await run.guards.check()  # ends a run that cannot go on; waits while one is paused
    await run.finish()


async def train_to_the_end(
    prepared: Prepared,
    run_dir: Path,
    display: Display,
    preimport: Preimport,
    *,
    on_start: Callable[[], None] = lambda: None,
) -> None:
    """Train a run, and start it again from its newest checkpoint when it loses workers that nothing else replaces.

    Those are learner ranks, Ray itself, and nodes with untrained data; engines, scoring and reference
    workers are replaced while the run goes on. `on_start` is called when everything has been started. A run that never
    started fails at once.
    """
    restarts, has_started = Restarts(prepared.config.cluster.max_restarts), False
    while True:
        try:
            async with open_run(prepared, run_dir, display, preimport) as run:
                has_started = True
                on_start()
                await run.supervise(train(run))
                return
        except (WorkerDiedError, DeadlineError, LostDataError) as error:
            if not has_started or not restarts.take("the run"):
                raise
            logger.warning("the run is started again, from its newest checkpoint, because of this: %s", error)
        # With the engines that `rlsys scale` has asked for meanwhile.
        prepared = replace(prepared, config=replace(run.scaling.config, resume="auto"))
