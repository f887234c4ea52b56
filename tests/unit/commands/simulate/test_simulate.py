"""The simulator: engines by hand, costs that made-up runs were made of, steps that can be worked out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from rlsys.cli import execute
from rlsys.commands.simulate.command import shape_of
from rlsys.commands.simulate.costs import Costs, EngineCosts, SampledResponse, fit_engine, nonnegative, read_costs
from rlsys.commands.simulate.engine import SimulatedEngine
from rlsys.commands.simulate.run import Shape, Simulation
from rlsys.config.compose import load_config
from rlsys.errors import ConfigError, RlsysError
from rlsys.run_folder.folder import RunFolder
from tests.run_folder import Recipe, write_run


def test_an_engine_by_hand() -> None:
    engine = SimulatedEngine(EngineCosts(iteration=1.0, sequence=0.5, request=0.25), max_num_seqs=2)
    for sample, tokens in enumerate([2, 4, 1]):
        engine.add(0.0, (0, 1, sample), tokens)
    # Two prompts, then two iterations of two sequences: 0.5 + 2 * 2.
    assert engine.next_event() == pytest.approx(4.5)
    assert engine.advance(4.5) == [(0, 1, 0)]
    # The third has a place now: its prompt and one iteration of two.
    assert engine.next_event() == pytest.approx(4.5 + 0.25 + 2.0)
    assert engine.advance(5.0) == []
    assert engine.advance(6.75) == [(0, 1, 2)]
    # One more iteration for the second, alone.
    assert engine.next_event() == pytest.approx(6.75 + 1.5)
    engine.pause(0.5)
    assert engine.advance(99.0) == [(0, 1, 1)]
    assert engine.busy_s == pytest.approx(8.75)


@pytest.mark.parametrize("max_num_seqs", [8, 64])
@pytest.mark.parametrize("true", [EngineCosts(0.004, 0.0001, 0.001), EngineCosts(0.01, 0.001, 0.0)])
def test_costs_are_found_again(true: EngineCosts, max_num_seqs: int) -> None:
    """Responses of an engine of known costs, in three batches."""
    lengths = np.random.default_rng(0).geometric(0.02, size=120)
    engine = SimulatedEngine(true, max_num_seqs)
    found: dict[int, SampledResponse] = {}
    now = 0.0
    for batch in range(3):
        for number in range(40 * batch, 40 * batch + 40):
            engine.add(now, (number, 1, 0), int(lengths[number]))
        start = now
        while (event := engine.next_event()) is not None:
            now = event
            for number, _, _ in engine.advance(now):
                found[number] = SampledResponse(0, start, now, int(lengths[number]))
        now += 1.0
    fitted = fit_engine([found[number] for number in sorted(found)], max_num_seqs)  # in the order asked for
    company = min(20, max_num_seqs)  # of so many: fewer or more were rare, and say little
    per_iteration = [costs.iteration + company * costs.sequence for costs in (true, fitted)]
    assert per_iteration[1] == pytest.approx(per_iteration[0], rel=0.1)


ENGINE = EngineCosts(iteration=0.1, sequence=0.0, request=0.0)


def costs(**changes: float) -> Costs:
    base = {"scoring": 0.0, "reference": 0.0, "update": 2.0, "update_token": 0.0, "broadcast": 0.5, "other": 0.0}
    return Costs(engine=ENGINE, max_num_seqs=64, groups=((10, 30),), step_s=0.0, **{**base, **changes})


def shape(**changes: int) -> Shape:
    base = {"rollout_workers": 1, "learner_ranks": 1, "scoring_workers": 1, "reference_workers": 0}
    base |= {"prompts_per_step": 4, "samples_per_prompt": 2, "max_staleness": 0, "max_in_flight": 64}
    return Shape(**{**base, **changes})


def test_a_synchronous_step_is_the_sum_of_its_stages() -> None:
    outcome = Simulation(costs(), shape())()
    assert outcome.step_s == pytest.approx(30 * 0.1 + 2.0 + 0.5)
    assert outcome.bottleneck == "rollout"
    with_rewards = Simulation(costs(scoring=0.25, reference=0.125), shape(reference_workers=1))()
    # The four last responses come together: four rewards, and a group's reference after the last of them.
    assert with_rewards.step_s == pytest.approx(5.5 + 4 * 0.25 + 2 * 0.125)


def test_ahead_of_training_a_step_is_its_slower_side() -> None:
    slow_learner = Simulation(costs(update=5.0), shape(max_staleness=1))()
    assert slow_learner.step_s == pytest.approx(5.5)
    assert slow_learner.bottleneck == "learner"
    crowded = Costs(**{**costs(update=0.5, broadcast=0.0).__dict__, "engine": EngineCosts(0.0, 0.01, 0.0)})
    slow_engine = Simulation(crowded, shape(max_staleness=1))()
    # A token takes 0.01 s in any company: 1.6 s, and a little idling where two batches end almost together.
    assert 1.6 <= slow_engine.step_s < 1.8
    assert slow_engine.bottleneck == "rollout"
    assert slow_engine.bottleneck == "rollout"


def test_more_ranks_and_engines_share_the_work() -> None:
    by_token = costs(update=0.0, update_token=0.05)  # 160 tokens a step: 8 s
    assert Simulation(by_token, shape(learner_ranks=2))().step_s == pytest.approx(3.0 + 4.0 + 0.5)
    crowded = Costs(**{**costs().__dict__, "engine": EngineCosts(0.0, 0.01, 0.0)})
    alone, shared = (Simulation(crowded, shape(rollout_workers=count))().step_s - 2.5 for count in (1, 2))
    assert shared == pytest.approx(alone / 2)


@pytest.mark.parametrize(("rank", "workers"), [(0, 1), (16, 0)])
def test_a_policy_with_an_adapter_has_no_reference_workers(rank: int, workers: int) -> None:
    config = load_config(["algorithm.kl.coef=0.04", f"learner.lora.rank={rank}"])
    assert shape_of(config, 1, 1, 0).reference_workers == workers


def test_costs_of_a_run_by_hand(tmp_path: Path) -> None:
    """Every step: 0.2 s scoring, 1.5 s update, 0.1 s broadcast; 4.1 s, and 16 responses."""
    run = RunFolder(write_run(tmp_path / "run", Recipe(num_steps=6)))
    for row in run.rows:
        row |= {"time/reference_s": 0.4, "idle/scoring": 0.9}
    without = read_costs(run, load_config([]))
    assert without.broadcast == pytest.approx(0.1)
    assert without.step_s == pytest.approx(4.1)
    assert without.scoring == pytest.approx(0.1 * 4.1 / 16)
    assert len(without.groups) == 4 * 4  # the first two steps are left out
    # The learner computes the reference of an adapter itself: its work, not that of workers.
    with_adapter = read_costs(run, load_config(["algorithm.kl.coef=0.04", "learner.lora.rank=16"]))
    learner_s = [costs.update + costs.update_token * tokens for costs in (without, with_adapter) for tokens in (800,)]
    assert learner_s[1] / learner_s[0] == pytest.approx(1.9 / 1.5)
    assert with_adapter.reference == 0.0


def test_a_run_that_cannot_be_simulated(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Recipe(num_steps=4))
    with pytest.raises(RlsysError, match=r"has 2 steps after the first 2 .*needs 3 or more"):
        read_costs(RunFolder(run), load_config([]))
    (run / "config.yaml").write_text("leaner: {lr: 1}\n")
    with pytest.raises(ConfigError, match=r"config\.yaml was not written by this version of rlsys"):
        execute(["simulate", str(run)])


@pytest.mark.parametrize(
    ("y", "costs"),
    [
        ([3.0, 5.0, 7.0], [1.0, 2.0]),  # 1 + 2 x
        ([0.0, 2.0, 4.0], [0.0, 16 / 14]),  # -2 + 2 x: sum(x y) / sum(x^2), not the 2 of the line
        ([5.0, 4.0, 3.0], [4.0, 0.0]),  # 6 - x: the mean
        ([-1.0, -2.0, -3.0], [0.0, 0.0]),
    ],
)
def test_costs_are_the_best_that_are_not_negative(y: list[float], costs: list[float]) -> None:
    # x is 1, 2, 3
    assert nonnegative([np.ones(3), np.array([1.0, 2.0, 3.0])], np.array(y)) == pytest.approx(costs)
