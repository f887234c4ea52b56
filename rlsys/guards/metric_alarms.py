"""Alarms about a step's numbers: what each looks at, when it holds, and what it says.

A threshold is compared with the run itself where healthy runs differ in size, and is a number where they do not. All
of them leave healthy runs alone: tests hold them against the metrics of real ones.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median

from rlsys.config.schema import Config

FIRST = 10  # steps at the start that later ones are compared with
BEFORE = 20  # steps before a step that it is compared with
# How far apart engine and learner may drift, in nats per token: so many times the first steps' mean difference, and
# this much more. About half way to where `weights.verify` refuses the update.
DRIFT_FACTOR = 5.0
DRIFT_FLOORS = {"float32": 5e-5, "bfloat16": 5e-3}
K3_LIMIT = 0.05  # nats per token between engine and learner, whatever the first steps had
KL_LIMIT = 2.0  # nats per token to the reference: to it every token is about 7 times less likely
ENTROPY_SHARE = 0.1  # of the first steps' entropy
LENGTH_FACTOR = 2.0  # of the steps before
CUT_SHARE = 0.1  # of the responses cut off at the limit, without which longer ones are no alarm
RATE_SHARE = 1 / 3  # of the tokens per second of the steps before
TIME_FACTOR = 1.5  # of the time per step of the steps before: short responses alone make few tokens per second
# Growth of a process is looked at over so many steps, and smoothed over a part of them.
MEMORY_STEPS, SMOOTHED = 50, 10
MEMORY_FLOOR_GIB = 0.2  # smaller growth is noise
# The share of the growth that falls into the second half: 0.5 when it is steady, less when it comes to an end, as of
# caches that fill up.
STEADY = 0.4
# The processes whose memory is sampled, by role.
ROLES = ("driver", "rollout", "scoring", "reference", "learner", "critic")


class History:
    """The values of some metrics in the steps that had all of them, oldest first."""

    def __init__(self, keys: Sequence[str]) -> None:
        self._values: dict[str, list[float]] = {key: [] for key in keys}

    def add(self, row: Mapping[str, float | None]) -> bool:
        """Add a step's values; return False, and add none, where one is missing."""
        values = {key: row.get(key) for key in self._values}
        if any(value is None for value in values.values()):
            return False
        for key, value in values.items():
            self._values[key].append(float(value or 0.0))
        return True

    def now(self, key: str) -> float:
        """Return the newest value."""
        return self._values[key][-1]

    def first(self, key: str) -> float | None:
        """Return the median of the first steps; None while there are no later ones."""
        values = self._values[key]
        return median(values[:FIRST]) if len(values) > FIRST else None

    def before(self, key: str) -> float | None:
        """Return the median of the last steps before the newest one; None while there are few."""
        values = self._values[key][-BEFORE - 1 : -1]
        return median(values) if len(values) >= FIRST else None

    def around(self, key: str, steps_ago: int) -> float | None:
        """Return the median of the `SMOOTHED` steps that ended so many steps ago; None before there were as many."""
        values = self._values[key]
        end = len(values) - steps_ago
        return median(values[end - SMOOTHED : end]) if end >= SMOOTHED else None


@dataclass(frozen=True)
class MetricAlarm:
    """One alarm about numbers; it is raised when it holds in `steps` steps in a row."""

    name: str  # its option, under `alarms`
    kind: str
    keys: tuple[str, ...]  # a step that lacks one of these metrics says nothing
    steps: int
    holds: Callable[[History], bool]
    text: str


def metric_alarms(config: Config) -> list[MetricAlarm]:
    """Return every alarm about numbers, for a run of this configuration."""
    return [
        _mismatch(config),
        MetricAlarm(
            "kl",
            "kl",
            ("policy/kl_ref",),
            3,
            lambda seen: seen.now("policy/kl_ref") > KL_LIMIT,
            f"policy/kl_ref is above {KL_LIMIT:g} nats per token: the policy is so far from the reference that its "
            "responses have little to do with it. Likely cause: learner.lr is too high, or the reward pays for text "
            "that the reference would never write (read the responses in rollouts/). Go back to an earlier checkpoint "
            "with a lower learner.lr or a higher algorithm.kl.coef",
        ),
        MetricAlarm(
            "entropy",
            "entropy",
            ("policy/entropy",),
            5,
            _entropy_collapsed,
            f"policy/entropy is below {ENTROPY_SHARE:.0%} of what it was in the first {FIRST} steps: the responses to "
            "a prompt are nearly alike, so little more can be learned. Likely cause: learner.lr is too high, or "
            "nothing keeps variety (try policy_loss.clip_high above clip_low, algorithm.entropy.coef, or a higher "
            "rollout.temperature). With rewards as high as they can be, the task is learned and the run may end",
        ),
        _length(config),
        MetricAlarm(
            "throughput",
            "throughput",
            ("throughput/tokens_per_s", "time/step_s"),
            3,
            _throughput_collapsed,
            f"throughput/tokens_per_s is below a third of the {BEFORE} steps before, and steps take more than "
            f"{TIME_FACTOR:g} times as long. Likely cause: another process uses the machine, memory is swapped, a "
            "reward service answers slowly, or an engine samples a few very long responses. The metric time/..._s "
            "that has grown names the stage, and the role with the lowest idle/... is the bottleneck",
        ),
        *(_memory(role, config.train.num_steps) for role in ROLES),
    ]


def _mismatch(config: Config) -> MetricAlarm:
    mean, k3 = "sync/logprob_abs_diff/mean", "sync/k3"
    floor = max(DRIFT_FLOORS[dtype] for dtype in (config.learner.dtype, config.engine_dtype))

    def drifted(seen: History) -> bool:
        first = seen.first(mean)
        return seen.now(k3) > K3_LIMIT or (first is not None and seen.now(mean) > DRIFT_FACTOR * first + floor)

    return MetricAlarm(
        "mismatch",
        "mismatch",
        (mean, k3),
        3,
        drifted,
        f"engines and learner drift apart: {mean} is above {DRIFT_FACTOR:g} times that of the first {FIRST} steps plus "
        f"{floor:g}, or {k3} above {K3_LIMIT:g} nats per token. Likely cause: the rounding of two implementations "
        "grows with the weights (a finer rollout.dtype and learner.dtype or a lower learner.lr helps), or engines do "
        "not compute with the weights that they were sent",
    )


def _entropy_collapsed(seen: History) -> bool:
    first = seen.first("policy/entropy")
    return first is not None and seen.now("policy/entropy") < ENTROPY_SHARE * first


def _length(config: Config) -> MetricAlarm:
    length, cut = "rollout/response_tokens/mean", "rollout/truncated_fraction"

    def exploded(seen: History) -> bool:
        before = seen.before(length)
        return before is not None and seen.now(length) > LENGTH_FACTOR * before and seen.now(cut) > CUT_SHARE

    return MetricAlarm(
        "length",
        "explosion",
        (length, cut),
        3,
        exploded,
        f"responses are more than {LENGTH_FACTOR:g} times as long as in the {BEFORE} steps before, and more than "
        f"{CUT_SHARE:.0%} are cut off at rollout.max_response_tokens={config.rollout.max_response_tokens}. Likely "
        "cause: the reward does not mind length, or the policy repeats itself (read the responses in rollouts/). The "
        "reward soft_overlong_punishment or repetition_penalty, or a lower learner.lr, helps",
    )


def _throughput_collapsed(seen: History) -> bool:
    rate, step_s = seen.before("throughput/tokens_per_s"), seen.before("time/step_s")
    if rate is None or step_s is None:
        return False
    is_slow = seen.now("throughput/tokens_per_s") < RATE_SHARE * rate
    return is_slow and seen.now("time/step_s") > TIME_FACTOR * step_s


def _memory(role: str, num_steps: int) -> MetricAlarm:
    key, free = f"memory/{role}_gib", "memory/free_gib"

    def creeps(seen: History) -> bool:
        now, half, start = (seen.around(key, ago) for ago in (0, MEMORY_STEPS // 2, MEMORY_STEPS))
        if now is None or half is None or start is None:
            return False
        growth = now - start
        if growth < MEMORY_FLOOR_GIB or now - half < STEADY * growth:
            return False
        return growth / MEMORY_STEPS * (num_steps - seen.now("step")) > seen.now(free)

    name = "the driver" if role == "driver" else f"a {role} worker"
    return MetricAlarm(
        "memory",
        f"memory/{role}",
        ("step", key, free),
        3,
        creeps,
        f"the memory of {name} has grown steadily over {MEMORY_STEPS} steps, and at this rate the machine has none "
        f"left before the last step ({key}, memory/free_gib). Likely cause: a reward function, a data source or a "
        "library keeps what it has seen. With checkpoint.every, resume=auto goes on with fresh processes",
    )
