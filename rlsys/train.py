"""THE loop: prompts -> rollout -> reward -> reference -> advantages -> update -> broadcast -> (again)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TypeVar

from rlsys.algorithms.coefficients import adapted
from rlsys.algorithms.requirements import learner_is_reference
from rlsys.build.run import Run
from rlsys.evaluation.evaluate import eval_metrics, evaluate
from rlsys.metrics.step import Metrics, StageClock, reward_metrics, rollout_metrics
from rlsys.orchestrator.experience import Scored
from rlsys.orchestrator.step_batch import Collected
from rlsys.run_folder import checkpoint
from rlsys.types import Experience, Offender

T = TypeVar("T")


def train(run: Run) -> None:
    """Train until `train.num_steps`; a step makes its policy version from rollouts of the one before it, or with
    `train.max_staleness` of some versions before that."""
    config, version = run.config, run.state.step
    _broadcast(run, version)
    if version == 0:
        _finish_step(run, {"step": 0, "policy_version": 0}, evaluated=_evaluation(run, 0))

    for step in range(version + 1, config.train.num_steps + 1):
        clock = StageClock()
        collected = run.pipeline.collect(version, clock)
        offenders, update, experience = collected.offenders(), Metrics(), None
        lacking = collected.lacks()
        if not offenders and lacking is None:
            experience, estimated = _experience(run, collected, version, clock)
            with clock.stage("update"):
                update, offenders = _update(run, experience, step)
            offenders = [replace(offender, group=collected.kept[offender.group]) for offender in offenders]
            update |= estimated
        with clock.stage("broadcast"):
            update = _broadcast(run, step) | update  # of trained tokens and a fixed text the former say more
        _refresh_reference(run, step)

        metrics: Metrics = dict.fromkeys(("policy/kl_ref", "sync/logprob_abs_diff/mean", "sync/logprob_abs_diff/max"))
        metrics |= {"step": step, "policy_version": step}
        metrics |= rollout_metrics(collected.groups, version) | reward_metrics(collected.rewards, collected.logged)
        metrics |= collected.metrics() | update | clock.metrics() | run.pipeline.metrics()
        metrics |= run.guard.record(step, offenders, collected.groups, collected.rewards)
        metrics |= run.unscored.record(step, lacking) if collected.groups else {}
        version = step
        run.failures.tell(step, collected.rewards)
        run.transcript.write(step, collected.groups, collected.rewards, collected.trained, experience)
        _finish_step(run, metrics, evaluated=_evaluation(run, step))
        if run.lanes is not None:
            run.lanes.ask()
        run.guard.check()
        run.unscored.check()
        run.unscored_evals.check()
        _checkpoint(run, step)
    if run.probe is not None:
        run.probe.finish()


def _broadcast(run: Run, version: int) -> Metrics:
    """Every engine serves `version`; where sampling runs ahead, a probe goes after the weights."""
    metrics: Metrics = {**run.weights.broadcast(version)}
    if run.probe is not None:
        run.probe.begin(version)
        metrics |= run.probe.take()
    return metrics


def _experience(run: Run, collected: Collected, version: int, clock: StageClock) -> tuple[Experience, Metrics]:
    """Critic and advantages of what is to be trained."""

    def kept(column: Sequence[T] | None) -> list[T] | None:
        return None if column is None else [column[i] for i in collected.kept]

    groups, rewards = kept(collected.groups) or [], kept(collected.rewards) or []
    references, kl_sums = kept(collected.ref_logprobs), kept(collected.kl_sums)
    estimates, metrics = None, Metrics()
    if groups and learner_is_reference(run.config):
        with clock.stage("reference"):
            references, kl_sums = run.learner.reference(groups)
    ref_logprobs = None if references is None else tuple(references)
    with clock.stage("advantages"):
        if run.critic is not None and groups:
            estimates, measured = run.critic.estimate(groups, rewards, ref_logprobs, run.coefficients)
            metrics |= measured
        scored = Scored(groups, rewards, kept(collected.greedy_rewards), ref_logprobs, kl_sums, estimates)
        return run.credit(scored, version, run.coefficients), metrics


def _update(run: Run, experience: Experience, step: int) -> tuple[Metrics, list[Offender]]:
    """Policy and critic; nothing when no group is left to train, and only the critic during its warm-up."""
    metrics: Metrics = {"policy/kl_coef": run.coefficients.kl, "policy/entropy_coef": run.coefficients.entropy}
    if not experience.minibatches:
        return metrics, []
    if run.critic is None or step > run.config.train.critic_warmup_steps:
        learned, offenders = run.learner.update(experience)
        metrics |= learned
        if offenders:
            return metrics, offenders
        run.coefficients = adapted(
            run.coefficients,
            run.config.algorithm,
            kl=learned.get("policy/kl_ref"),
            entropy=learned.get("policy/entropy"),
            num_trajectories=len(experience.rows),
        )
    if run.critic is not None:
        learned, offenders = run.critic.update(experience)
        return metrics | learned, offenders
    return metrics, []


def _refresh_reference(run: Run, step: int) -> None:
    refresh = run.config.algorithm.refresh
    if run.reference is not None and refresh.every and step % refresh.every == 0:
        run.reference.blend(run.learner.begin_read_weights(), refresh.alpha)


def _evaluation(run: Run, step: int) -> Metrics:
    every, last = run.config.eval.every, step == run.config.train.num_steps
    if every == 0 or not run.prepared.eval_sets or (step % every and not last):
        return {}
    clock = StageClock()
    with clock.stage("eval"):
        results = evaluate(run.sampler, run.prepared.eval_sets, run.config, step)
    if step == 0:
        results.all()  # what lacks rewards before anything is trained is broken, not down
    counted = run.unscored_evals.record(step, "; ".join(results.lacking) or None)
    return counted | eval_metrics(results) | {"time/eval_s": clock.seconds["eval"]}


def _finish_step(run: Run, metrics: Metrics, *, evaluated: Metrics) -> None:
    tokens, step_s = metrics.get("rollout/tokens"), metrics.get("time/step_s")
    if tokens is not None and step_s:
        metrics["throughput/tokens_per_s"] = tokens / step_s
    metrics |= evaluated
    run.log.write(metrics)
    run.display.step(metrics)


def _checkpoint(run: Run, step: int) -> None:
    if not checkpoint.is_due(run.config.checkpoint, step, run.config.train.num_steps):
        return
    now, guard = run.coefficients, run.guard
    state = checkpoint.RunState(
        step,
        run.prompts.cursor,
        now.kl,
        now.entropy,
        now.entropy_level,
        guard.in_a_row,
        guard.total,
        run.pipeline.pending_places,
        run.prompts.digest,
        run.unscored.in_a_row,
        run.unscored.total,
    )
    checkpoint.save(run.run_dir, state, run.save, keep=run.config.checkpoint.keep)
