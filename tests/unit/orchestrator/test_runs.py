"""Whole runs on fake engines of random speed, with random lengths, failures, deaths and rejections.

FakeRun checks its books at every event: staleness, whole groups, nothing trained twice or left behind, capacity, no
deadlock.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.orchestrator.fake_run import FakeRun, Workload

NUM_TRAJECTORIES = 10_000

RULES = {
    "keep": {},
    "drop": {"reject_rate": 0.3, "max_extra_per_step": 0},
    "replace": {"reject_rate": 0.3},
    "replace_some": {"reject_rate": 0.5, "max_extra_per_step": 3},
    "oversample": {"reject_rate": 0.3, "oversample": 1.5},
}


# Every bound and every number of engines; the other pairs are long.
PAIRS = {(0, 1), (0, 4), (1, 2), (2, 3), (4, 1), (4, 4), (8, 2), (8, 3)}


@pytest.mark.parametrize(
    ("max_staleness", "num_engines"),
    [
        pytest.param(bound, engines, marks=[] if (bound, engines) in PAIRS else [pytest.mark.long])
        for bound in (0, 1, 2, 4, 8)
        for engines in (1, 2, 3, 4)
    ],
)
@pytest.mark.parametrize("rule", ["keep", "replace"])
def test_ten_thousand_trajectories(max_staleness: int, num_engines: int, rule: str) -> None:
    workload = Workload(
        seed=max_staleness,
        speed_seed=num_engines,
        max_staleness=max_staleness,
        num_engines=num_engines,
        failure_rate=0.05,
        death_rate=0.01,
        **RULES[rule],  # type: ignore[arg-type]
    )
    run = FakeRun(workload).play(NUM_TRAJECTORIES)
    assert run.num_restarted > 0
    assert (run.num_deaths > 0) == (num_engines > 1)


@pytest.mark.parametrize("max_staleness", [0, 2])
@pytest.mark.parametrize("rule", ["keep", "replace"])
def test_engines_join_and_leave_all_the_time(max_staleness: int, rule: str) -> None:
    workload = Workload(
        seed=1,
        speed_seed=2,
        max_staleness=max_staleness,
        num_engines=2,
        failure_rate=0.05,
        death_rate=0.01,
        resize_rate=0.5,
        **RULES[rule],  # type: ignore[arg-type]
    )
    run = FakeRun(workload).play(NUM_TRAJECTORIES // 2)
    assert min(run.num_joined, run.num_left) > 20


@given(
    seed=st.integers(0, 2**32),
    speed_seed=st.integers(0, 2**32),
    max_staleness=st.integers(0, 8),
    num_engines=st.integers(1, 4),
    prompts_per_step=st.integers(1, 7),
    samples_per_prompt=st.integers(1, 8),
    rule=st.sampled_from(sorted(RULES)),
    first_version=st.sampled_from([0, 3]),
    failure_rate=st.sampled_from([0.0, 0.2]),
    resize_rate=st.sampled_from([0.0, 0.5]),
)
def test_sizes_of_every_kind(rule: str, **sizes: int) -> None:
    FakeRun(Workload(**sizes, death_rate=0.1, **RULES[rule])).play(400)  # type: ignore[arg-type]


@pytest.mark.parametrize("rule", sorted(RULES))
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_without_staleness_the_order_depends_on_the_seed_alone(rule: str, seed: int) -> None:
    workload = Workload(
        seed=seed,
        speed_seed=10 + seed,
        max_staleness=0,
        num_engines=3,
        failure_rate=0.1,
        death_rate=0.05,
        **RULES[rule],  # type: ignore[arg-type]
    )
    steps = FakeRun(workload).play(1_500).steps
    for other in (replace(workload, speed_seed=20 + seed), replace(workload, speed_seed=30 + seed, num_engines=1)):
        assert FakeRun(other).play(1_500).steps == steps, f"{workload} against {other}"


def test_the_same_seeds_are_the_same_run() -> None:
    workload = Workload(seed=1, speed_seed=2, max_staleness=2, num_engines=4, failure_rate=0.1, death_rate=0.05)
    assert FakeRun(workload).play(2_000).steps == FakeRun(workload).play(2_000).steps


def test_with_staleness_short_groups_do_overtake_long_ones() -> None:
    """Without this the tests above would say nothing about groups that are trained out of order."""
    workload = Workload(seed=0, speed_seed=0, max_staleness=4, num_engines=4)
    order = [group for step in FakeRun(workload).play(1_000).steps for group in step]
    assert order != sorted(order)
