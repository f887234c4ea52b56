"""Recipes of EasyR1."""

from __future__ import annotations

from typing import Any

import pytest

from rlsys.commands.importers.dialects.easyr1 import DIALECT as EASYR1
from rlsys.errors import ConfigError
from tests.unit.commands.importers.imports import run


def test_the_example_of_easyr1() -> None:
    """Worked by hand: 512 prompts of 5, updates of 128 prompts, 12,000 // 512 = 23 steps per epoch."""
    result = run(EASYR1, "easyr1_config.yaml", rows=12000)
    pattern = r"(?s)\A<think>.*</think>.*\\boxed\{.*\}.*\Z"
    assert result.config == {
        "seed": 1,
        "model": {"path": "Qwen/Qwen2.5-7B-Instruct"},
        "data": {
            "train": "hiyouga/math12k",
            "eval": "hiyouga/math12k",
            "prompt_column": "problem",
            "prompt_template": "./examples/format_prompt/math.jinja",
            "chat_template": True,
            "max_prompt_tokens": 2048,
            "overlong": "filter",
        },
        "train": {"num_steps": 345, "prompts_per_step": 512, "samples_per_prompt": 5, "minibatches_per_step": 4},
        "rollout": {
            "tensor_parallel_size": 2,
            "max_response_tokens": 2048,
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
            "policy_loss": {"name": "ppo_clip", "clip_high": 0.3, "dual_clip": 3.0},
            "aggregation": {"name": "token_mean"},
            "kl": {"coef": 0.01},
        },
        "rewards": [
            {"name": "math_answer", "weight": 0.9},
            {"name": "regex", "weight": 0.1, "pattern": pattern},
        ],
        "scoring": {"skip_special_tokens": True},
        "eval": {"every": 5, "num_samples": 1, "temperature": 0.6},
        "checkpoint": {"every": 5, "keep": 3},
        "logging": {"trackers": [{"name": "wandb", "project": "easy_r1"}]},
    }
    assert not result.unknown
    assert not result.unsupported


def test_a_script_changes_the_example_beneath_it() -> None:
    before = run(EASYR1, "easyr1_config.yaml", rows=12000).written
    after = run(EASYR1, "easyr1_qwen_math.sh", rows=12000).written
    assert {key: value for key, value in after.items() if before.get(key) != value} == {
        "model.path": "Qwen/Qwen3-4B",
        "rollout.max_response_tokens": 4096,
        "rollout.tensor_parallel_size": 1,
        "learner.lora.rank": 64,
        "learner.lora.alpha": 64.0,
        "learner.lora.target_modules": "all-linear",
        "learner.lr": 1e-5,
        "eval.num_samples": 16,
        "eval.temperature": 1.0,
    }


EASY = {"worker.rollout.n": 4}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (
            {"worker.actor.loss_type": "cispo", "worker.actor.loss_avg_mode": "seq"},
            {
                "algorithm.policy_loss": {"name": "cispo", "ratio_max": 1.3},
                "algorithm.aggregation": {"name": "sequence_mean"},
            },
        ),
        (
            {"worker.actor.loss_type": "gspo_token", "worker.actor.clip_ratio_low": 3e-4},
            {"algorithm.policy_loss": {"name": "gspo_token", "clip_low": 3e-4, "clip_high": 0.3}},
        ),
        (
            {"algorithm.adv_estimator": "gae", "algorithm.lam": 0.95, "worker.critic.optim.lr": 1e-5},
            {
                "algorithm.advantage": {"name": "gae", "gamma": 1.0, "lam": 0.95},
                "critic.lr": 1e-5,
                "critic.value_clip": 0.5,
            },
        ),
        (
            # The defaults: k1 in the reward.
            {},
            {"algorithm.kl.coef": 1e-3, "algorithm.kl.name": "k1", "algorithm.kl.apply_to": "reward"},
        ),
        (
            {"algorithm.use_kl_loss": True, "algorithm.kl_penalty": "mse", "algorithm.kl_type": "adaptive"},
            {"algorithm.kl.name": "k2", "algorithm.kl.apply_to": "loss", "algorithm.kl.target": 0.1},
        ),
        ({"algorithm.disable_kl": True}, {"algorithm.kl.coef": 0.0}),
        (
            {"algorithm.online_filtering": True, "data.mini_rollout_batch_size": 1536},
            {
                "algorithm.groups.zero_variance": "resample",
                "algorithm.groups.oversample": 3.0,
                "algorithm.groups.max_tries": 20,
            },
        ),
        (
            {"worker.actor.optim.lr_warmup_ratio": 0.1, "trainer.max_steps": 55},
            {"learner.warmup_steps": 10, "train.num_steps": 55},  # 5 steps of 2 updates
        ),
        (
            {"worker.actor.optim.lr_warmup_steps": 10, "worker.actor.ppo_epochs": 3},
            {"learner.warmup_steps": 60},  # 10 steps of 2 updates, gone through 3 times
        ),
        ({"data.train_files": "org/data@dev", "data.answer_key": "label"}, {"data.columns": {"answer": "label"}}),
    ],
)
def test_options(options: dict[str, Any], expected: dict[str, Any]) -> None:
    written = run(EASYR1, EASY | options).written
    assert {key: written[key] for key in expected} == expected


def test_what_rlsys_does_not_have_is_unsupported() -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        run(EASYR1, EASY | {"worker.actor.global_batch_size": 100})
    other = run(EASYR1, EASY | {"algorithm.adv_estimator": "grpo_passk", "worker.rollout.top_p": 0.9})
    assert {left.option for left in other.unsupported} >= {"algorithm.adv_estimator", "worker.rollout.top_p"}


def test_reward_functions_are_called_as_easyr1_calls_them() -> None:
    mine = {"worker.reward.reward_function": "./mine.py:score", "worker.reward.reward_function_kwargs": {"weight": 0.2}}
    entry = {"name": "easyr1_function", "function": "./mine.py:score", "options": {"weight": 0.2}}
    own = run(EASYR1, EASY | mine)
    assert own.written["rewards"] == [entry]
    assert not [left for left in own.unsupported if "reward" in left.option]
    single = run(EASYR1, EASY | mine | {"worker.reward.reward_type": "sequential"})
    assert single.written["rewards"] == [entry | {"reward_type": "sequential"}]


def test_greedy_training_samples_are_unsupported() -> None:
    result = run(EASYR1, EASY | {"worker.rollout.temperature": 0})
    assert "worker.rollout.temperature" in {left.option for left in result.unsupported}
    assert "rollout.temperature" not in result.written
