"""Options of the alarms: the section `alarms`, one option per alarm, whose value is what the run does about it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlsys.config.option import option

REACTIONS = ("off", "warn", "pause", "stop")


def reaction(default: str, what: str) -> Any:
    """Declare an alarm with its usual reaction and what it is about."""
    return option(default, choices=REACTIONS, help=what)


@dataclass
class AlarmsConfig:
    """Alarms: what a run does when its numbers show that something is wrong.

    `off`: nothing; `warn`: a warning that names the likely cause; `pause`: the run waits before its next step until
    its file `paused` is removed; `stop`: the run ends in order, with a checkpoint. docs/observability.md has the
    thresholds.
    """

    mismatch: str = reaction("warn", "log-probabilities of engine and learner drift apart; stop leaves no checkpoint")
    kl: str = reaction("warn", "the policy is far from the reference")
    entropy: str = reaction("warn", "the policy has lost its variety")
    no_spread: str = reaction("warn", "rewards that do not tell responses apart")
    length: str = reaction("warn", "responses grow suddenly, or are cut off at the limit")
    throughput: str = reaction("warn", "steps take much longer, at fewer tokens per second")
    memory: str = reaction("warn", "a process grows so fast that memory ends before the run does")
    unscored: str = reaction("stop", "`scoring.max_unscored_steps` steps in a row without a valid reward")
    nonfinite: str = reaction("stop", "`train.max_nonfinite_steps` steps in a row that met NaN or infinity")
