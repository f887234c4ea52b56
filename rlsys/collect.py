"""From the prompt stream to scored groups: rollout and reward, and again where groups teach nothing (DAPO)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlsys.algorithms import advantages
from rlsys.build import Run
from rlsys.errors import RlsysError
from rlsys.metrics.step import Metrics, StageClock
from rlsys.scoring.combine import first_failure
from rlsys.types import Offender, Prompt, Reward, RolloutGroup


@dataclass
class Collected:
    """A step's rollouts: everything that was sampled; `kept` indexes what is to be trained."""

    groups: list[RolloutGroup] = field(default_factory=list)
    rewards: list[list[Reward]] = field(default_factory=list)
    greedy_rewards: list[float | None] | None = None  # of each group's prompt, where the estimator asks for it
    logged: dict[str, float] = field(default_factory=dict)  # what reward functions noted, a mean over rounds
    kept: list[int] = field(default_factory=list)
    tries: int = 0
    by_parts: bool = False  # a group's reward functions are compared one by one

    def offenders(self) -> list[Offender]:
        """Trajectories with a reward that is not finite, and of kept groups those with such a log-probability.

        A reward counts in any group: nobody knows whether its group has variance.
        """
        found = []
        for g, (group, rewards) in enumerate(zip(self.groups, self.rewards, strict=True)):
            for s, (summary, reward) in enumerate(zip(group.summaries, rewards, strict=True)):
                if reward.outcome == "not_finite":
                    found.append(Offender(g, s, "reward"))
                elif not summary.is_finite and g in self.kept:
                    found.append(Offender(g, s, "engine log-probability"))
        return found

    def metrics(self) -> Metrics:
        """How many groups taught nothing, were left out, and how often prompts were drawn."""
        return {
            "groups/zero_variance": float(sum(not has_variance(rewards, self.by_parts) for rewards in self.rewards)),
            "groups/discarded": float(len(self.groups) - len(self.kept)),
            "groups/tries": float(self.tries),
        }


def collect(run: Run, policy_version: int, step: int, clock: StageClock) -> Collected:
    """Sample and score a step's groups.

    With `algorithm.groups.zero_variance=resample` prompts are drawn until `train.prompts_per_step` groups have rewards
    that differ, or for `max_tries` rounds. Accepted groups are all trained, also those beyond the number asked for;
    what a round rejects is counted.
    """
    train, rule = run.config.train, run.config.algorithm.groups
    by_parts = bool(advantages.registry.fact(str(run.config.algorithm.advantage["name"]), "by_parts", False))
    collected = Collected(greedy_rewards=[] if run.greedy is not None else None, by_parts=by_parts)
    missing = train.prompts_per_step
    while missing > 0 and collected.tries < (rule.max_tries if rule.zero_variance == "resample" else 1):
        collected.tries += 1
        count = math.ceil(missing * rule.oversample) if rule.zero_variance == "resample" else missing
        start = len(collected.groups)
        _sample(run, run.prompts.take(count), policy_version, step, clock, collected)
        fresh = range(start, len(collected.groups))
        accepted = [i for i in fresh if rule.zero_variance == "keep" or has_variance(collected.rewards[i], by_parts)]
        collected.kept += accepted
        missing -= len(accepted)
    every = [reward for rewards in collected.rewards for reward in rewards]
    if all(reward.total is None and reward.outcome != "not_finite" for reward in every):
        failure = first_failure(collected.rewards)
        raise RlsysError(f"no trajectory of this step has a valid reward. First failure: {failure}")
    return collected


def has_variance(rewards: Sequence[Reward], by_parts: bool) -> bool:
    """Whether two valid rewards of a group differ, in their total or in any part. Equality decides, not a variance."""
    valid = [reward for reward in rewards if reward.total is not None]
    if not by_parts:
        return len({reward.total for reward in valid}) > 1
    return len({tuple((name, part.value) for name, part in sorted(reward.parts.items())) for reward in valid}) > 1


def _sample(
    run: Run, prompts: list[Prompt], policy_version: int, step: int, clock: StageClock, collected: Collected
) -> None:
    """One round of rollouts and rewards, added to `collected`."""
    greedy: list[RolloutGroup] = []
    with clock.stage("rollout"):
        groups = run.rollout.generate(prompts, run.sampling, policy_version)
        if run.greedy is not None:
            greedy = run.rollout.generate(prompts, run.greedy, policy_version)
    with clock.stage("reward"):
        rewards, logged = run.scoring.score([*groups, *greedy], step)
    collected.groups += groups
    collected.rewards += rewards[: len(groups)]
    for name, value in logged.items():
        before = collected.logged.get(name, value)
        collected.logged[name] = before + (value - before) / collected.tries
    if collected.greedy_rewards is not None:
        collected.greedy_rewards += [group[0].total for group in rewards[len(groups) :]]
