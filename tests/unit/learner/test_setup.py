"""The ranks' part of the configuration."""

from __future__ import annotations

import pytest

from rlsys.config.compose import load_config
from rlsys.learner.setup import CriticSetup, PolicySetup
from rlsys.reference.worker import ReferenceSetup

UPDATES = ["train.num_steps=10", "train.updates_per_step=3", "train.minibatches_per_step=2"]


@pytest.mark.parametrize(("algorithm", "policy_updates"), [("grpo", 60), ("ppo", 36)])
def test_the_schedule_counts_every_optimizer_update(algorithm: str, policy_updates: int) -> None:
    """With a critic, the policy makes no updates in the steps that train the critic alone."""
    config = load_config([f"algorithm={algorithm}", "train.critic_warmup_steps=4", *UPDATES])
    assert PolicySetup.from_config(config, "model", 64).num_updates == policy_updates
    assert CriticSetup.from_config(config, "model", 64).num_updates == 60


def test_engines_have_the_learner_s_dtype_unless_they_have_their_own() -> None:
    dtypes = [[], ["learner.dtype=bfloat16"], ["learner.dtype=bfloat16", "rollout.dtype=float32"]]
    found = [PolicySetup.from_config(load_config(overrides), "model", 64).engine_dtype for overrides in dtypes]
    assert found == ["float32", "bfloat16", "float32"]


def test_whether_engines_keep_their_cache_across_an_update() -> None:
    kept = [PolicySetup.from_config(load_config([f"rollout.inflight_kv={v}"]), "m", 64) for v in ("keep", "recompute")]
    assert [setup.kv_is_kept for setup in kept] == [True, False]


@pytest.mark.parametrize(("tokens", "factor"), [(64, 1.0), (1024, 1.0), (8192, 8.0)])
def test_deadlines_count_by_the_length_of_responses(tokens: int, factor: float) -> None:
    config = load_config([f"rollout.max_response_tokens={tokens}", "learner.deadline_s=100", "critic.deadline_s=70"])
    assert PolicySetup.from_config(config, "m", 64).learner.deadline_s == 100 * factor
    assert CriticSetup.from_config(config, "m", 64).critic.deadline_s == 70 * factor
    assert ReferenceSetup.from_config(config, "m", 64).reference.deadline_s == 600 * factor
