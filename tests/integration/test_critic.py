"""The critic's estimates are GAE's, and it learns the same on one rank and on two."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch

from rlsys.build.placement import worker_demands
from rlsys.config.compose import load_config
from rlsys.learner.critic_group import CriticGroup
from rlsys.learner.setup import CriticSetup
from rlsys.runtime.cluster import Cluster
from rlsys.types import (
    Coefficients,
    Experience,
    ExperienceRow,
    Prompt,
    ReferenceScores,
    Reward,
    RewardPart,
    RolloutGroup,
    ScoredGroup,
    Trajectory,
    TrajectoryRef,
    TrajectorySummary,
)
from tests.integration.runs import connected, kill, wait

LENGTHS = [[3, 5], [4, 2], [6, 1]]
REWARDS: list[list[float | None]] = [[1.0, 0.0], [2.0, None], [-1.0, 0.5]]
LAMBDA = 0.9
KL = 0.1  # of every token: the engine's log-probability is -2, the reference's -2.1, and k1 is their difference


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    config = load_config(["experiment=quickstart", "algorithm=ppo", "critic.num_workers=2"])
    with connected(config, "critic") as opened:
        yield opened


def groups() -> list[ScoredGroup]:
    """Three groups of two trajectories with prompts of four tokens, their rewards and reference scores."""
    import ray

    generator = np.random.default_rng(3)
    made = []
    for number, (lengths, totals) in enumerate(zip(LENGTHS, REWARDS, strict=True)):
        trajectories = []
        for length in lengths:
            mask = np.arange(4 + length) >= 4
            ids = generator.integers(5, 15, 4 + length).astype(np.int32)
            said = np.where(mask, -2.0, 0.0).astype(np.float32)
            trajectories.append(Trajectory(ids, mask, said, (), "stop", 0))
        summaries = tuple(TrajectorySummary(4 + length, length, "stop", 0, 0) for length in lengths)
        prompt = Prompt(number, "", np.ones(4, dtype=np.int32))
        chunk = ray.put(trajectories)
        pointers = tuple(TrajectoryRef(chunk, index) for index in range(len(trajectories)))
        outcome = ["ok" if total is not None else "error" for total in totals]
        rewards = tuple(
            Reward(t, {"r": RewardPart(t, o)}, o)  # type: ignore[arg-type]
            for t, o in zip(totals, outcome, strict=True)
        )
        reference = ray.put([np.where(t.loss_mask, -2.1, 0.0).astype(np.float32) for t in trajectories])
        rollout = RolloutGroup(number, prompt, pointers, summaries)
        made.append(ScoredGroup(rollout, rewards, reference=ReferenceScores(reference, [])))
    return made


def run(cluster: Cluster, model: str, *overrides: str) -> tuple[list[Any], list[Any], dict[str, float], list[float]]:
    """Estimates before and after twenty updates, the metrics of the first, and every update's loss."""
    import ray

    common = [
        "critic.lr=1e-3",
        "train.updates_per_step=1",
        f"algorithm.advantage.lam={LAMBDA}",
        "algorithm.kl.coef=0.5",
    ]
    config = load_config(["experiment=quickstart", "algorithm=ppo", *common, *overrides])
    critic = CriticGroup(cluster, CriticSetup.from_config(config, model, 64), worker_demands(config)["critic"])
    wait(critic.start(deadline_s=200))
    try:
        made = groups()
        coefficients = Coefficients(kl=0.5, entropy=0.0)
        first, metrics = wait(critic.estimate(made, coefficients))
        rows = tuple(
            ExperienceRow(2 * g + s, g, s, 0.0, 0.0, 4 + LENGTHS[g][s], LENGTHS[g][s])
            for g in range(3)
            for s in range(2)
            if REWARDS[g][s] is not None
        )
        references = tuple(group.reference.logprobs for group in made if group.reference is not None)
        trajectories = tuple(group.rollout.trajectories for group in made)
        experience = Experience((rows,), trajectories, references, first, 0, coefficients)
        losses = []
        for _ in range(20):
            learned = wait(critic.update(experience))
            assert not learned.nonfinite
            losses.append(learned.metrics["critic/loss"])
        last, _ = wait(critic.estimate(made, coefficients))
        return ray.get(list(first)), ray.get(list(last)), metrics, losses
    finally:
        kill(critic)


@pytest.fixture(scope="module")
def alone(cluster: Cluster, model: str) -> Any:
    return run(cluster, model, "critic.whiten=false", "critic.value_clip=null")


def test_a_fresh_critic_s_advantages_are_discounted_rewards(alone: Any) -> None:
    """Values are 0 at first: `A_t = sum_(s >= t) lambda^(s - t) r_s`, the KL at every token, the reward at the last."""
    for lengths, totals, estimates in zip(LENGTHS, REWARDS, alone[0], strict=True):
        for length, total, estimate in zip(lengths, totals, estimates, strict=True):
            rewards = np.full(length, -0.5 * KL)
            rewards[-1] += total or 0.0
            expected = [sum(LAMBDA ** (s - t) * rewards[s] for s in range(t, length)) for t in range(length)]
            assert estimate.advantages[4:] == pytest.approx(expected, abs=1e-5)
            assert estimate.returns[4:] == pytest.approx(expected, abs=1e-5)
            assert not estimate.values.any()
            assert not estimate.advantages[:4].any()


def test_it_learns_the_returns(alone: Any) -> None:
    _, after, _, losses = alone
    assert losses[-1] < 0.5 * losses[0]
    assert any(abs(estimate.values).max() > 0.1 for estimates in after for estimate in estimates)


def test_two_ranks_with_zero_3_and_many_microbatches_are_the_same(cluster: Cluster, model: str, alone: Any) -> None:
    ranks = ["critic.num_workers=2", "critic.zero_stage=3", "critic.microbatch_tokens=12"]
    first, last, metrics, losses = run(cluster, model, "critic.whiten=false", "critic.value_clip=null", *ranks)
    assert losses == pytest.approx(alone[3], rel=1e-3)
    assert metrics["critic/return/mean"] == pytest.approx(alone[2]["critic/return/mean"])
    for found, expected in ((first, alone[0]), (last, alone[1])):
        for group, same in zip(found, expected, strict=True):
            for estimate, other in zip(group, same, strict=True):
                assert np.allclose(estimate.values, other.values, atol=1e-3)
                assert np.allclose(estimate.advantages, other.advantages, atol=1e-3)


@pytest.mark.long
def test_whitened_advantages_have_no_mean_and_unit_variance_over_valid_tokens(cluster: Cluster, model: str) -> None:
    estimates = run(cluster, model, "critic.num_workers=2")[0]
    valid = [
        estimate.advantages[4:]
        for totals, group in zip(REWARDS, estimates, strict=True)
        for total, estimate in zip(totals, group, strict=True)
        if total is not None
    ]
    tokens = torch.from_numpy(np.concatenate(valid))
    assert tokens.mean().item() == pytest.approx(0, abs=1e-5)
    assert tokens.std(correction=0).item() == pytest.approx(1, abs=1e-4)
