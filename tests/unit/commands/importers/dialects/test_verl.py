"""Recipes of verl."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlsys.commands.importers.choose import choose
from rlsys.commands.importers.dialects.verl import DIALECT as VERL
from rlsys.commands.importers.recipe_file import read
from rlsys.errors import ConfigError
from tests.unit.commands.importers.imports import RECIPES, run


def test_a_script_of_verl(monkeypatch: pytest.MonkeyPatch) -> None:
    """Worked by hand: 512 prompts of 8, updates of 128 prompts, 15 epochs of 15,000 // 512 = 29 steps."""
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("MODEL", raising=False)
    result = run(VERL, "verl_math.sh", rows=15000)
    assert choose(read(RECIPES / "verl_math.sh"), None, None).dialect is VERL
    data = "/home/me/data"
    assert result.config == {
        "model": {"path": "Qwen/Qwen2.5-7B-Instruct"},
        "data": {
            "train": [f"{data}/gsm8k/train.parquet", f"{data}/math/train.parquet"],
            "eval": f"{data}/math/test.parquet",
            "columns": {"answer": "reward_model.ground_truth"},
            "chat_template": True,
            "max_prompt_tokens": 1024,
            "overlong": "filter",
        },
        "train": {"num_steps": 435, "prompts_per_step": 512, "minibatches_per_step": 4},
        "rollout": {
            "tensor_parallel_size": 2,
            "max_response_tokens": 4096,
            "gpu_memory_utilization": 0.6,
            "enforce_eager": False,
        },
        "learner": {
            "dtype": "bfloat16",
            "weight_decay": 0.01,
            "decay_norms_and_biases": True,
            "offload_optimizer": True,
            "gradient_checkpointing": True,
        },
        "algorithm": {
            "advantage": {"name": "grpo", "eps": 1e-6},
            "policy_loss": {"name": "ppo_clip", "clip_high": 0.28, "dual_clip": 3.0},
            "aggregation": {"name": "token_mean"},
            "kl": {"coef": 0.001},
        },
        "rewards": [{"name": "verl_function", "function": "rewards/math.py:compute_score"}],
        "eval": {"every": 5},
        "checkpoint": {"every": 20},
        "logging": {"trackers": [{"name": "wandb", "project": "math"}]},
    }
    assert not result.unknown
    assert not result.unsupported


def test_dapo_in_yaml() -> None:
    result = run(VERL, "verl_dapo.yaml")
    written = result.written
    expected = {
        "data.overlong": "filter",
        "train.num_steps": 300,
        "train.prompts_per_step": 512,
        "train.minibatches_per_step": 16,
        "learner.warmup_steps": 160,  # 10 steps of 16 updates: a step moves the learning rate once
        "learner.weight_decay": 0.1,
        "algorithm.kl.coef": 0.0,
        "algorithm.policy_loss": {"name": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28, "dual_clip": 10.0},
        "algorithm.groups.zero_variance": "resample",
        "algorithm.groups.oversample": 3.0,
        "algorithm.groups.max_tries": 10,
        "eval.num_samples": 1,
        "eval.temperature": 1.0,
    }
    assert {key: written[key] for key in expected} == expected
    assert written["rewards"][-1] == {
        "name": "soft_overlong_punishment", "weight": 1.0, "max_response_tokens": 20480, "buffer_tokens": 4096
    }  # fmt: skip
    # verl chooses the reward by the column data_source, and cuts the distribution of its evaluation.
    assert [left.option for left in result.unsupported] == ["actor_rollout_ref.rollout.val_kwargs.top_p"]


GRPO = {"algorithm.adv_estimator": "grpo", "actor_rollout_ref.rollout.n": 4}
ACTOR = "actor_rollout_ref.actor."


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"algorithm.kl.coef": 0.0, "learner.dtype": "bfloat16", "train.minibatches_per_step": 4}),
        (
            {"algorithm.use_kl_in_reward": True, "algorithm.kl_ctrl.kl_coef": 0.05,
             "algorithm.kl_ctrl.type": "adaptive"},
            {"algorithm.kl.coef": 0.05, "algorithm.kl.name": "k1", "algorithm.kl.apply_to": "reward",
             "algorithm.kl.target": 0.1},
        ),
        (
            {"algorithm.norm_adv_by_std_in_grpo": False, f"{ACTOR}loss_agg_mode": "seq-mean-token-sum-norm"},
            {"algorithm.advantage": {"name": "grpo", "eps": 1e-6, "scale": "none"},
             "algorithm.aggregation": {"name": "constant_length", "length": 512}},
        ),
        (
            {f"{ACTOR}policy_loss.loss_mode": "gspo", f"{ACTOR}clip_ratio_low": 3e-4, f"{ACTOR}clip_ratio_high": 4e-4},
            {"algorithm.policy_loss": {"name": "gspo", "clip_low": 3e-4, "clip_high": 4e-4}},
        ),
        (
            {"algorithm.adv_estimator": "gae", "algorithm.lam": 0.95},
            {"algorithm.advantage": {"name": "gae", "gamma": 1.0, "lam": 0.95}, "critic.lr": 1e-5,
             "critic.decay_norms_and_biases": True},
        ),
        (
            {"algorithm.rollout_correction.rollout_is": "token"},
            {"algorithm.corrections": [{"name": "truncate", "level": "token", "high": 2.0}]},
        ),
        (
            {f"{ACTOR}optim.lr_warmup_steps_ratio": 0.1, "trainer.total_training_steps": 55},
            {"learner.warmup_steps": 20, "train.num_steps": 55},  # 5 steps of 4 updates
        ),
        (
            {"reward.custom_reward_function.path": "a.py", "reward.reward_manager.name": "batch",
             "reward.custom_reward_function.reward_kwargs": {"k": 1}},
            {"rewards": [{"name": "verl_function", "function": "a.py:compute_score", "reward_type": "batch",
                          "options": {"k": 1}}]},
        ),
    ],
)  # fmt: skip
def test_options(options: dict[str, Any], expected: dict[str, Any]) -> None:
    written = run(VERL, GRPO | options).written
    assert {key: written[key] for key in expected} == expected


@pytest.mark.parametrize(
    "option",
    [
        {f"{ACTOR}ulysses_sequence_parallel_size": 2},
        {"actor_rollout_ref.rollout.multi_turn.enable": True},
        {"actor_rollout_ref.rollout.name": "sglang"},
        {f"{ACTOR}policy_loss.loss_mode": "gpg"},
        {"algorithm.adv_estimator": "optimal_token_baseline"},
        {"data.truncation": "left"},
        {"algorithm.use_kl_in_reward": True, f"{ACTOR}use_kl_loss": True},
    ],
)
def test_what_rlsys_does_not_have_is_unsupported(option: dict[str, Any]) -> None:
    assert next(iter(option)) in {left.option for left in run(VERL, GRPO | option).unsupported}


def test_a_configuration_of_hydra_lies_beneath_the_overrides(tmp_path: Path) -> None:
    (tmp_path / "config").mkdir()
    (tmp_path / "config" / "mine.yaml").write_text("data: {train_batch_size: 64, seed: 3}\n")
    script = tmp_path / "run.sh"
    start = "python3 -m verl.trainer.main_ppo --config-path=config"
    script.write_text(f"{start} --config-name=mine data.seed=4\n")
    assert read(script).tree == {"data": {"train_batch_size": 64, "seed": 4}}
    script.write_text(f"{start} --config-name=ppo_trainer.yaml data.seed=4\n")  # verl's own
    assert read(script).tree == {"data": {"seed": 4}}
    script.write_text(f"{start} --config-name=other data.seed=4\n")
    with pytest.raises(ConfigError, match=r"builds on 'config/other\.yaml'"):
        read(script)
