"""THE loop: prompts -> rollout -> reward -> reference -> advantages -> update -> broadcast -> (again)."""

from __future__ import annotations

from rlsys import checkpoint
from rlsys.build import Run
from rlsys.evaluate import evaluate
from rlsys.experience import make_experience
from rlsys.metrics.step import Metrics, StageClock, reward_metrics, rollout_metrics


def train(run: Run) -> None:
    """Train until `train.num_steps`; step k makes policy version k from rollouts of version k - 1."""
    config, version = run.config, run.state.step
    run.weights.broadcast(version)
    if version == 0:
        _finish_step(run, {"step": 0, "policy_version": 0}, evaluated=_evaluation(run, 0))

    for step in range(version + 1, config.train.num_steps + 1):
        clock = StageClock()
        with clock.stage("rollout"):
            prompts = run.prompts.take(config.train.prompts_per_step)
            groups = run.rollout.generate(prompts, run.sampling, version)
        with clock.stage("reward"):
            rewards, logged = run.scoring.score(groups, step)
        with clock.stage("reference"):
            ref_logprobs = run.reference.logprobs(groups) if run.reference is not None else None
        with clock.stage("update"):
            experience = make_experience(groups, rewards, ref_logprobs, run.advantage, version)
            update = run.learner.update(experience)
        with clock.stage("broadcast"):
            run.weights.broadcast(step)

        metrics: Metrics = {"step": step, "policy_version": step, "policy/kl_ref": None}
        metrics |= rollout_metrics(groups, version) | reward_metrics(rewards, logged) | update | clock.metrics()
        version = step
        run.log.rollouts(step, groups, rewards)
        _finish_step(run, metrics, evaluated=_evaluation(run, step))
        _checkpoint(run, step)


def _evaluation(run: Run, step: int) -> Metrics:
    every, last = run.config.eval.every, step == run.config.train.num_steps
    if every == 0 or not run.prepared.eval_prompts or (step % every and not last):
        return {}
    clock = StageClock()
    with clock.stage("eval"):
        result = evaluate(run.rollout, run.scoring, run.prepared.eval_prompts, run.config, step)
    return {
        "eval/accuracy": result.accuracy,
        "eval/reward/mean": result.reward_mean,
        "eval/failed": result.num_failed,
        "time/eval_s": clock.seconds["eval"],
    }


def _finish_step(run: Run, metrics: Metrics, *, evaluated: Metrics) -> None:
    tokens, step_s = metrics.get("rollout/tokens"), metrics.get("time/step_s")
    if tokens is not None and step_s:
        metrics["throughput/tokens_per_s"] = tokens / step_s
    metrics |= evaluated
    run.log.write(metrics)
    run.display.step(metrics)


def _checkpoint(run: Run, step: int) -> None:
    every, last = run.config.checkpoint.every, step == run.config.train.num_steps
    if every == 0 or (step % every and not last):
        return
    state = checkpoint.RunState(step=step, prompt_cursor=run.prompts.cursor)
    checkpoint.save(run.run_dir, state, run.learner.save, keep=run.config.checkpoint.keep)
