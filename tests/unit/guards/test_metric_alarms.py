"""Each alarm about numbers fires on a series that shows what it is for, and on no healthy one."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from rlsys.config.compose import load_config
from rlsys.guards.alarms import Alarms

RUNS = Path(__file__).parent / "healthy"
Series = Mapping[str, Sequence[float]]
SLOW = [5000.0] * 20 + [1200.0] * 3


def kinds(series: Series, *overrides: str) -> list[tuple[int, str]]:
    """Step and kind of every alarm in a series of steps."""
    alarms = Alarms(load_config(overrides))
    found = []
    for step, values in enumerate(zip(*series.values(), strict=True), start=1):
        new = alarms.look([], {"step": step, **dict(zip(series, values, strict=True))})
        found += [(alarm.step, alarm.kind) for alarm in new]
    return found


def growing(gib_per_step: float, steps: int, *, until: int = 1000) -> Series:
    held = [1.0 + gib_per_step * min(step, until) for step in range(steps)]
    return {"memory/scoring_gib": held, "memory/free_gib": [8.0] * steps}


def drift(*means: float, k3: float = 1e-12) -> Series:
    return {"sync/logprob_abs_diff/mean": means, "sync/k3": [k3] * len(means)}


def lengths(*values: float, cut: float) -> Series:
    return {"rollout/response_tokens/mean": values, "rollout/truncated_fraction": [cut] * len(values)}


def rates(tokens_per_s: Sequence[float], step_s: Sequence[float]) -> Series:
    return {"throughput/tokens_per_s": tokens_per_s, "time/step_s": step_s}


FIRES = {
    "drift": (drift(*[1e-6] * 11, *[1e-4] * 3), [], (14, "mismatch")),
    "mismatch from the start": (drift(*[0.1] * 3, k3=0.1), [], (3, "mismatch")),
    "kl": ({"policy/kl_ref": [0.1, 3.0, 3.0, 3.0]}, [], (4, "kl")),
    "entropy": ({"policy/entropy": [0.6] * 10 + [0.05] * 6}, [], (15, "entropy")),
    "length": (lengths(*[100.0] * 20, *[300.0] * 3, cut=0.2), [], (23, "explosion")),
    "throughput": (rates(SLOW, [1.0] * 20 + [4.0] * 3), [], (23, "throughput")),
    "memory": (growing(0.05, 70), ["train.num_steps=1000"], (62, "memory/scoring")),
}
SILENT = {
    "rounding that stays": (drift(*[1e-6] * 11, *[4e-6] * 9), []),
    "coarser rounding in bfloat16": (drift(*[1e-3] * 11, *[8e-3] * 9, k3=1e-4), ["learner.dtype=bfloat16"]),
    "single outliers of the KL": ({"policy/kl_ref": [0.1, 9.0, 9.0, 0.1] * 3}, []),
    "entropy that falls as the policy learns": ({"policy/entropy": [0.7 - 0.005 * n for n in range(120)]}, []),
    "responses that become longer as the policy reasons": (lengths(*[100 + 10 * n for n in range(90)], cut=0.2), []),
    "responses that end by themselves": (lengths(*[100.0] * 20, *[300.0] * 9, cut=0.01), []),
    "short responses make few tokens per second, in short steps": (rates(SLOW, [1.0] * 20 + [0.3] * 3), []),
    "a slower machine": (rates([5000.0] * 20 + [2500.0] * 9, [1.0] * 20 + [2.0] * 9), []),
    "caches that fill up": (growing(0.05, 200, until=40), ["train.num_steps=1000"]),
    "growth that the run's end comes before": (growing(0.05, 100), ["train.num_steps=100"]),
}


@pytest.mark.parametrize("name", FIRES)
def test_it_fires(name: str) -> None:
    series, overrides, expected = FIRES[name]
    assert kinds(series, *overrides) == [expected]


@pytest.mark.parametrize("name", SILENT)
def test_it_does_not_fire(name: str) -> None:
    series, overrides = SILENT[name]
    assert kinds(series, *overrides) == []


def test_every_alarm_has_a_series_that_it_fires_on() -> None:
    watched = {alarm.kind.partition("/")[0] for alarm, *_ in Alarms(load_config([]))._of_metrics}
    assert watched == {kind.partition("/")[0] for _, _, (_, kind) in FIRES.values()}


@pytest.mark.parametrize("run", sorted(RUNS.glob("*.jsonl")), ids=lambda run: run.stem)
def test_a_healthy_run_raises_none(run: Path) -> None:
    """Numbers of real runs, with the keys that alarms look at."""
    rows = [json.loads(line) for line in run.read_text().splitlines()]
    alarms = Alarms(load_config([f"train.num_steps={len(rows)}"]))
    assert len(rows) > 30
    assert all({"policy/entropy", "throughput/tokens_per_s", "sync/k3"} <= row.keys() for row in rows)
    assert [alarm for row in rows for alarm in alarms.look([], row)] == []
