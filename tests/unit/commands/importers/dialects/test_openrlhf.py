"""Recipes of OpenRLHF."""

from __future__ import annotations

from typing import Any

import pytest

from rlsys.commands.importers.dialects.openrlhf import DIALECT as OPENRLHF
from rlsys.commands.importers.recipe import RunSize
from rlsys.commands.importers.translate import translate
from rlsys.errors import ConfigError
from tests.unit.commands.importers.imports import run


def test_the_prorl_script() -> None:
    """Worked by hand: 512 prompts of 16 samples, updates of 1,024, 100 episodes of 17,000 rows."""
    result = run(OPENRLHF, "openrlhf_math.sh", rows=17000)
    assert result.config == {
        "seed": 42,
        "model": {"path": "deepseek-ai/DeepSeek-R1-Distill-Qwen-1.5B"},
        "data": {
            "train": "OpenRLHF/dapo-math-17k",
            "eval": {"name": "OpenRLHF/aime-2024", "split": "train"},
            "chat_template": True,
            "max_prompt_tokens": 1024,  # of 9,216 beside 8,192
            "overlong": "filter",
        },
        "train": {"num_steps": 3300, "prompts_per_step": 512, "samples_per_prompt": 16, "minibatches_per_step": 8},
        "rollout": {"max_response_tokens": 8192, "gpu_memory_utilization": 0.75},
        "learner": {
            "zero_stage": 3,
            "dtype": "bfloat16",
            "lr_schedule": "cosine",
            "warmup_steps": 792,  # 3% of 26,400 updates
            "betas": [0.9, 0.95],
            "microbatch_tokens": 32768,
            "gradient_checkpointing": True,
        },
        "reference": {"microbatch_tokens": 9216},
        "algorithm": {
            "advantage": {"name": "reinforce_pp_baseline"},
            "policy_loss": {"name": "ppo_clip", "clip_high": 0.27},
            "aggregation": {"name": "token_mean"},
            "corrections": [{"name": "mask", "level": "token", "low": 0.5, "high": 5.0}],
            "kl": {"coef": 1e-4, "name": "k2"},
            "groups": {"zero_variance": "resample"},
        },
        "rewards": [{"name": "openrlhf_function", "function": "examples/python/math_reward_func.py:reward_func"}],
        "eval": {"every": 5, "num_samples": 4},
        "checkpoint": {"every": 5, "keep": 3},
        "logging": {"trackers": []},
    }
    assert not result.unknown
    assert {left.option for left in result.unsupported} == {"reward.stop_properly_penalty_coef"}


def test_flags_of_old_releases_mean_the_same() -> None:
    result = run(OPENRLHF, "openrlhf_flat.sh")
    assert not result.unknown
    written = result.written
    assert written["train.minibatches_per_step"] == 8  # 1,024 samples in updates of 128
    assert written["train.num_steps"] == 97  # 100,000 // 1,024
    assert written["algorithm.advantage"] == {"name": "gae", "gamma": 1.0, "lam": 1.0}
    assert (written["learner.lr"], written["critic.lr"]) == (5e-7, 9e-6)
    assert (written["critic.zero_stage"], written["critic.offload_optimizer"]) == (3, True)
    served = {"name": "http", "url": "http://localhost:5000/get_reward", "protocol": "openrlhf"}
    assert written["rewards"] == [served]
    assert {taken.option for taken in result.translated} >= {"pretrain", "train_batch_size"}  # as the file spells them


IS = "algo.advantage.is_correction_"
OPEN = {"algo.advantage.estimator": "group_norm", "rollout.n_samples_per_prompt": 8}


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, None),
        (
            {f"{IS}level": "token", f"{IS}mode": "clip"},
            [{"name": "truncate", "level": "token", "low": 0.5, "high": 5.0}],
        ),
        ({f"{IS}enable": True}, [{"name": "truncate", "level": "token", "low": 0.5, "high": 5.0}]),
        (
            {f"{IS}level": "seq", f"{IS}threshold": 2.0},
            [{"name": "mask", "level": "geometric", "low": 0.0, "high": 2.0, "weigh": False}, {"name": "decoupled"}],
        ),
        ({f"{IS}level": "token", f"{IS}gating": "tv", f"{IS}threshold": 0.1}, None),
    ],
)
def test_corrections(options: dict[str, Any], expected: Any) -> None:
    assert run(OPENRLHF, OPEN | options).written["algorithm.corrections"] == expected


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, {"algorithm.advantage": {"name": "grpo", "eps": 1e-9}, "algorithm.kl.apply_to": "reward"}),
        (
            {"actor.policy_loss_type": "gspo", f"{IS}level": "token"},
            {
                "algorithm.policy_loss": {"name": "gspo", "clip_low": 0.2, "clip_high": 0.2},
                "algorithm.aggregation": {"name": "sequence_mean"},
                "train.old_logprobs": "engine",
                "algorithm.corrections": None,
            },
        ),
        ({"algo.kl.use_loss": True}, {"algorithm.kl.coef": 0.0}),  # k1 has no gradient in the loss
        ({"train.async_enable": True, "train.async_queue_size": 3}, {"train.max_staleness": 3}),
        (
            {"reward.model_name_or_path": "rm", "reward.overlong_buffer_len": 64, "rollout.max_new_tokens": 512},
            {
                "rewards": [
                    {"name": "reward_model", "model": "rm"},
                    {
                        "name": "soft_overlong_punishment",
                        "weight": 1.0,
                        "max_response_tokens": 512,
                        "buffer_tokens": 64,
                    },
                ]
            },
        ),
        (
            {"data.prompt_dataset": "a,b", "data.prompt_probs": "0.7,0.3", "data.input_template": "Q: {}\nA:"},
            {
                "data.train": [{"name": "a", "weight": 0.7}, {"name": "b", "weight": 0.3}],
                "data.prompt_template": "Q: {{ content }}\nA:",
            },
        ),
    ],
)
def test_options(options: dict[str, Any], expected: dict[str, Any]) -> None:
    written = run(OPENRLHF, OPEN | options).written
    assert {key: written[key] for key in expected} == expected


def test_a_chat_template_takes_the_place_of_text_around_prompts() -> None:
    result = run(OPENRLHF, OPEN | {"data.input_template": "Q: {}", "data.apply_chat_template": True})
    assert result.written["data.chat_template"] is True
    assert "data.prompt_template" not in result.written


def test_the_batch_must_consist_of_whole_updates() -> None:
    with pytest.raises(ConfigError, match="does not divide the 8192 samples"):
        run(OPENRLHF, OPEN | {"train.batch_size": 1000})
    uneven = run(OPENRLHF, OPEN | {"rollout.batch_size": 16, "train.batch_size": 4})
    assert uneven.written["train.minibatches_per_step"] == 16
    assert "train.batch_size" in [left.option for left in uneven.unsupported]


def test_a_recipe_without_prompts_keeps_the_rest_of_its_data() -> None:
    result = run(OPENRLHF, OPEN | {"data.label_key": "answer", "eval.dataset": "org/held-out"})
    assert "data.train" not in result.written
    assert result.written["data.columns"] == {"label": "answer"}
    assert result.written["data.eval"] == {"name": "org/held-out", "split": "train"}
    assert "data.prompt_dataset" in [row.option for row in result.defaults if not row.is_supported]


@pytest.mark.parametrize(
    ("options", "version", "expected"),
    [
        # Each by its own bound, as until 0.9.7.
        (
            {},
            "0.9.0",
            {"data.max_prompt_tokens": 1024, "rollout.max_response_tokens": 1024, "learner.dtype": "float32"},
        ),
        (
            {"prompt_max_len": 512, "generate_max_len": 2048, "bf16": True},
            "0.9.1",
            {"data.max_prompt_tokens": 512, "rollout.max_response_tokens": 2048, "learner.dtype": "bfloat16"},
        ),
        # The correction: an upper bound of 2 in 0.9.0, bands since, a type since 0.9.3, levels since 0.11.2.
        (
            {"enable_vllm_is_correction": True},
            "0.9.0",
            {"algorithm.corrections": [{"name": "truncate", "level": "token", "low": 0.0, "high": 2.0}]},
        ),
        (
            {"enable_vllm_is_correction": True, "use_icepop": True},
            "0.9.1",
            {"algorithm.corrections": [{"name": "mask", "level": "token", "low": 0.5, "high": 5.0}]},
        ),
        ({}, "0.11.2", {"algorithm.corrections": None, "algorithm.aggregation": {"name": "token_mean"}}),
        (
            {"algo.advantage.is_correction_level": "token", "algo.advantage.is_correction_mode": "clip"},
            "0.11.2",
            {"algorithm.corrections": [{"name": "truncate", "level": "token", "low": 0.5, "high": 5.0}]},
        ),
        (
            {"actor.loss_agg_mode": "seq-mean-token-mean"},
            "0.11.2",
            {"algorithm.aggregation": {"name": "sequence_mean"}},
        ),
        (
            {"algo.kl.use_loss": True, "algo.kl.unbiased_gradient": True},
            "0.11.2",
            {"algorithm.kl.unbiased": True, "algorithm.kl.name": "k1", "algorithm.kl.coef": 0.01},
        ),
    ],
)
def test_defaults_and_names_are_those_of_the_version(
    options: dict[str, Any], version: str, expected: dict[str, Any]
) -> None:
    written = translate(options, OPENRLHF, version, RunSize()).written
    assert {key: written.get(key) for key in expected} == expected


def test_the_estimator_of_flash_reinforce_is_not_carried_over() -> None:
    result = run(OPENRLHF, {"algo.advantage.estimator": "flash_reinforce", "rollout.n_samples_per_prompt": 1})
    assert result.written["algorithm.advantage"]["name"] == "reinforce_pp"
    (left,) = [left for left in result.unsupported if left.option == "algo.advantage.estimator"]
    assert "subtracts the mean of the whole batch" in left.reason
