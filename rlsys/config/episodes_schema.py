"""Options of episodes, which are played when a run has an environment or tools: the section `episodes`."""

from __future__ import annotations

from dataclasses import dataclass

from rlsys.config.learner_schema import NUM_CPUS_HELP, PER_LENGTH
from rlsys.config.option import option

POLICIES = ("train", "mask", "drop", "drop_group")
# Failures of the environment say nothing of the policy; the limits that it runs into do.
ON_END = {
    "max_turns": "train",
    "max_tokens": "train",
    "context_overflow": "train",
    "parse_error": "train",
    "env_error": "drop",
    "timeout": "drop",
}


@dataclass
class EpisodesConfig:
    """Episodes of many turns: their limits, and the workers that play them beside the engines."""

    max_turns: int = option(8, ge=1, help="most messages of the policy in an episode")
    max_calls: int = option(32, ge=0, help="most tool calls in an episode; more of them end it as max_turns")
    max_tokens: int | None = option(
        None, ge=2, help="most tokens of an episode, with the prompt and the environment's; null: the model's context"
    )
    max_sampled_tokens: int | None = option(
        None, ge=1, help="most tokens that the policy samples in an episode; null: what max_tokens leaves"
    )
    step_deadline_s: float = option(30.0, gt=0, help="deadline for one answer of the environment, which is then killed")
    deadline_s: float = option(600.0, gt=0, help=f"deadline for an episode, once it has begun, {PER_LENGTH}")
    on_end: dict[str, str] = option(
        ON_END,
        help="what happens to an episode, by its end: train; mask: it counts, and its tokens are not trained; drop; or "
        "drop_group",
    )
    reward_weight: float = option(1.0, any_number=True, help="weight of the environment's reward in the total; 0: none")
    num_workers: int = option(1, ge=1, help="number of episode workers")
    num_slots: int = option(
        256, ge=1, help="episodes that a worker plays at the same time, each with the environment in its own process"
    )
    num_cpus: float = option(1.0, ge=0, help=NUM_CPUS_HELP)
