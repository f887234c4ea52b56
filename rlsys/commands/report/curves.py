"""The metrics that share a plot, and the plot's title. Every other metric of a run gets a small plot at the end."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlsys.metrics.formatting import short
from rlsys.run_folder.folder import RunFolder

REST = "All other numbers"
HIDDEN = ("step", "policy_version")


@dataclass(frozen=True)
class Panel:
    """One plot: the metrics whose curves it shows.

    Metrics without a finite value in any run are left out, and so is a panel that has no metric left.
    """

    section: str
    title: str
    keys: tuple[str, ...]  # metrics or patterns: a `*` matches anything, and what it matches names the curve
    unit: str = ""
    log: bool = False
    stacked: bool = False
    exclude: tuple[str, ...] = ()  # patterns of metrics that are left out of `keys`
    skip_zero: bool = False  # leave out metrics that are 0 in every step: counts of failures


PANELS = (
    Panel("Reward", "Total reward, mean", ("reward/total/mean",)),
    Panel("Reward", "Reward parts, mean", ("reward/*/mean", "reward/logged/*"), exclude=("reward/total/*",)),
    Panel("Reward", "Total reward, standard deviation", ("reward/total/std",)),
    Panel("Reward", "Held-out evaluation", ("eval/*",), exclude=("eval/failed", "eval/*/failed", "eval/unscored")),
    Panel("Reward", "Groups whose rewards are all equal", ("groups/zero_variance", "groups/discarded"), "groups"),
    Panel(
        "Reward",
        "Responses without a valid reward",
        ("reward/*/timeout", "reward/*/error", "reward/*/not_finite", "reward/masked_trajectories", "eval/failed"),
        "responses",
        skip_zero=True,
    ),
    Panel(
        "Reward",
        "Steps and evaluations without any valid reward",
        ("reward/unscored_steps", "eval/unscored"),
        "so far",
        skip_zero=True,
    ),
    Panel("Policy", "KL divergence from the reference", ("policy/kl_ref",), "nats per token"),
    Panel("Policy", "Entropy", ("policy/entropy",), "nats per token"),
    Panel("Policy", "Clipped tokens", ("policy/clip_fraction",), "fraction of tokens"),
    Panel("Policy", "Loss", ("policy/loss",)),
    Panel("Policy", "Gradient norm", ("policy/grad_norm",)),
    Panel("Policy", "Learning rate", ("policy/lr",)),
    Panel("Responses", "Response length, mean", ("rollout/response_tokens/mean",), "tokens"),
    Panel("Responses", "Responses cut off at the length limit", ("rollout/truncated_fraction",), "fraction"),
    Panel(
        "Responses", "Staleness of responses", ("rollout/staleness/mean", "rollout/staleness/max"), "policy versions"
    ),
    Panel("Critic", "Value and return, mean", ("critic/*/mean",)),
    Panel("Critic", "Explained variance", ("critic/explained_variance",)),
    Panel("Critic", "Critic loss", ("critic/loss",)),
    Panel("Throughput and time", "Throughput", ("throughput/tokens_per_s",), "tokens per second"),
    Panel("Throughput and time", "Time per step", ("time/step_s", "time/eval_s"), "s"),
    Panel(
        "Throughput and time",
        "Time per stage",
        ("time/*_s",),
        "s",
        stacked=True,
        exclude=("time/step_s", "time/eval_s"),
    ),
    Panel("Throughput and time", "Idle workers", ("idle/*",), "fraction of the step"),
    Panel("Throughput and time", "Transfer of new weights", ("weights/*_s",), "s"),
    Panel("Engine against learner", "Difference of log-probabilities", ("sync/logprob_abs_diff/*",), "nats", log=True),
    Panel(
        "Engine against learner",
        "Effect of the adapter on log-probabilities",
        ("sync/adapter_effect/*",),
        "nats",
        log=True,
    ),
    Panel("Engine against learner", "Probability ratio, learner to engine", ("correction/ratio/*",), log=True),
    Panel("Engine against learner", "Weight after correction, mean", ("correction/weight/mean",)),
    Panel(
        "Engine against learner",
        "Effective and masked tokens",
        ("correction/effective_sample_fraction", "correction/masked_fraction"),
        "fraction",
    ),
)


def choose_panels(runs: Sequence[RunFolder]) -> list[dict[str, Any]]:
    """Return the plots that show something in at least one of the runs, in the order of the page."""
    known = _keys(runs, lambda value: value is not None)
    nonzero = _keys(runs, bool)
    panels, shown = [], set(HIDDEN)
    for panel in PANELS:
        labels = {key: label for key, label in _matching(panel.keys, known) if not _matches(panel.exclude, key)}
        shown.update(labels)  # also those that are hidden because they are 0: they get no small plot either
        if panel.skip_zero:
            labels = {key: label for key, label in labels.items() if key in nonzero}
        if labels:
            panels.append(_described(panel, labels))
    return panels + [_described(Panel(REST, key, (key,)), {key: key}) for key in sorted(known) if key not in shown]


def columns(run: RunFolder) -> dict[str, Any]:
    """Return the run's steps and each metric's values, None for steps without a value."""
    keys = [key for key in _keys([run], lambda value: value is not None) if key not in HIDDEN]
    return {
        "steps": [int(row["step"] or 0) for row in run.rows],
        "values": {key: [short(row.get(key)) for row in run.rows] for key in keys},
    }


def _described(panel: Panel, labels: dict[str, str]) -> dict[str, Any]:
    if len(set(labels.values())) < len(labels):  # two metrics with the same last part: show their whole keys
        labels = {key: key for key in labels}
    return {
        "section": panel.section,
        "title": panel.title,
        "unit": panel.unit,
        "log": panel.log,
        "stacked": panel.stacked,
        "legend": len(labels) > 1 or any("*" in key for key in panel.keys),
        "series": [{"key": key, "label": label} for key, label in labels.items()],
    }


def _keys(runs: Iterable[RunFolder], wanted: Callable[[float | None], bool]) -> dict[str, None]:
    """Return the metrics with at least one wanted value, in the order of their first appearance."""
    return {key: None for run in runs for row in run.rows for key, value in row.items() if wanted(value)}


def _matching(patterns: Sequence[str], keys: Iterable[str]) -> list[tuple[str, str]]:
    """Return the keys that match any pattern with the labels of their curves, pattern by pattern."""
    found = []
    for pattern in patterns:
        expression = re.compile("(.+)".join(map(re.escape, pattern.split("*"))))
        matches = [(key, expression.fullmatch(key)) for key in keys]
        found += [
            (key, match[1] if "*" in pattern else key.split("/")[-1].removesuffix("_s"))
            for key, match in matches
            if match
        ]
    return found


def _matches(patterns: Sequence[str], key: str) -> bool:
    return bool(_matching(patterns, [key]))
