"""The training loop: sample, estimate, update, broadcast, and again."""

from __future__ import annotations

from rlsys.build.run import Run


async def train(run: Run) -> None:
    """Train until `train.num_steps`.

    Step s makes policy version s. It trains groups that were sampled under version s - 1 or, with
    `train.max_staleness=k`, under up to k versions before that: sampling then goes on while everything below waits.
    """
    await run.start()  # the engines get the weights; evaluation before training
    for step in run.steps():
        batch = await run.orchestrator.next_batch(step)  # groups, sampled, scored and referenced
        experience = await run.experience.build(batch)  # values, advantages, loss weights
        update = await run.learners.update(experience, step)  # policy and critic
        broadcast = await run.weights.broadcast(step)  # every engine serves the new version
        await run.reference.refresh(step)
        evaluation = await run.evaluation.evaluate(step)
        await run.recorder.record(step, batch, experience, update, broadcast, evaluation)
        await run.checkpoints.save(step)
        await run.guards.check()  # ends a run that cannot go on; waits while one is paused
    await run.finish()
