"""axolotl's, EasyR1's and OpenRLHF's recipes to ours."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlsys.commands.importers.choose import options_of
from rlsys.commands.importers.dialects.axolotl import DIALECT as AXOLOTL
from rlsys.commands.importers.dialects.easyr1 import DIALECT as EASYR1
from rlsys.commands.importers.dialects.openrlhf import DIALECT as OPENRLHF
from rlsys.commands.importers.options import Dialect
from rlsys.commands.importers.recipe import RunSize
from rlsys.commands.importers.recipe_file import RecipeFile, read
from rlsys.commands.importers.translate import Translation, translate
from rlsys.config.schema import DataConfig
from rlsys.data.sources import sources_of
from rlsys.errors import ConfigError

RECIPES = Path(__file__).parent / "recipes"


def run(dialect: Dialect, tree: dict[str, Any] | str, rows: int | None = None, processes: int = 1) -> Translation:
    source = read(RECIPES / tree) if isinstance(tree, str) else RecipeFile(tree)
    size = RunSize(num_processes=processes, num_rows=rows)
    return translate(options_of(source, dialect), dialect, dialect.default_version, size)


def test_axolotl_s_r1_example() -> None:
    """Worked by hand: 16 * 8 completions in groups of 16, 7,473 rows, TRL 1.8's defaults."""
    result = run(AXOLOTL, "axolotl_r1.yaml", rows=7473)
    names = ("correctness", "int", "strict_format", "soft_format", "xmlcount")
    assert result.config == {
        "seed": 42,
        "model": {"path": "Qwen/Qwen2.5-1.5B-Instruct"},
        "data": {"train": "skrishna/gsm8k_only_answer", "eval": None, "chat_template": True},
        "train": {"num_steps": 934, "prompts_per_step": 8, "samples_per_prompt": 16},
        "rollout": {"max_response_tokens": 512, "gpu_memory_utilization": 0.2},
        "learner": {
            "dtype": "bfloat16",
            "warmup_steps": 100,
            "weight_decay": 0.1,
            "gradient_checkpointing": True,
        },
        "algorithm": {
            "aggregation": {"name": "token_mean"},  # TRL 1.8's dapo
            "kl": {"coef": 0.0},
            "corrections": [{"name": "mask", "level": "sequence", "high": 3.0}],
        },
        "rewards": [{"name": f"gsm8k_grpo:{name}_reward_func"} for name in names],
        "checkpoint": {"every": 234, "keep": 4},  # a quarter of 934
        "logging": {"trackers": [{"name": "wandb", "project": "gsm8k-grpo-r1"}]},
    }
    assert not result.unknown
    assert not result.unsupported
    transformation = next(taken for taken in result.translated if taken.option == "datasets")
    assert "gsm8k_grpo.axo_gsm8k_transform is not carried over" in transformation.note


def test_axolotl_s_own_defaults_replace_trl_s() -> None:
    tree = {"base_model": "m", "rl": "grpo", "micro_batch_size": 8, "learning_rate": 1e-6, "trl": {"beta": 0.1}}
    result = run(AXOLOTL, tree, rows=800)
    assert result.written["learner.lr_schedule"] == "cosine"
    assert result.written["learner.warmup_steps"] == 24  # 3% of 800
    assert result.written["algorithm.kl.coef"] == 0.1
    assert {"lr_scheduler", "warmup_ratio"} <= {row.option for row in result.defaults}  # under axolotl's names
    synchronised = run(AXOLOTL, tree | {"trl": {"beta": 0.1, "sync_ref_model": True}}, rows=800).written
    assert (synchronised["algorithm.refresh.every"], synchronised["algorithm.refresh.alpha"]) == (64, 0.9)


def test_axolotl_s_adapters_and_async() -> None:
    tree = {
        "rl": "gdpo",
        "micro_batch_size": 8,
        "adapter": "qlora",
        "load_in_4bit": True,
        "lora_r": 32,
        "lora_alpha": 64,
        "lora_target_linear": True,
        "warmup_steps": 0,
        "trl": {"async_prefetch": True, "prefetch_depth": 2, "use_vllm": True},
    }
    written = run(AXOLOTL, tree).written
    lora = {key.removeprefix("learner.lora."): value for key, value in written.items() if ".lora." in key}
    assert (lora["rank"], lora["alpha"], lora["target_modules"], lora["quantize_base"]) == (32, 64, "all-linear", "nf4")
    assert written["algorithm.advantage"] == {"name": "gdpo"}
    assert written["train.max_staleness"] == 2
    assert written["learner.warmup_steps"] == 0


def test_trl_s_names_are_not_axolotl_s() -> None:
    result = run(AXOLOTL, {"rl": "grpo", "micro_batch_size": 8, "per_device_train_batch_size": 4, "beta": 0.1})
    assert [left.option for left in result.unknown] == ["per_device_train_batch_size", "beta"]
    with pytest.raises(ConfigError, match="rl=dpo"):
        run(AXOLOTL, {"rl": "dpo", "micro_batch_size": 8})


def test_axolotl_s_other_keys_of_a_data_set_are_told() -> None:
    part = {"path": "org/x", "revision": "v2", "shards": 4, "ds_type": "json", "field_instruction": "question"}
    result = run(AXOLOTL, {"rl": "grpo", "micro_batch_size": 8, "datasets": [part], "test_datasets": [{"path": "y"}]})
    assert result.written["data.train"] == {"name": "org/x", "options": {"revision": "v2"}}
    notes = {taken.option: taken.note for taken in result.translated}
    assert "not carried over: ds_type, field_instruction, shards" in notes["datasets"]
    assert "not carried over" not in (notes["test_datasets"] or "")


@pytest.mark.parametrize(
    ("part", "train", "held_out"),
    [
        ({"path": "org/x"}, "org/x", {"name": "org/x", "split": "train"}),  # theirs is `train` for either
        ({"path": "org/x", "split": "train"}, "org/x", {"name": "org/x", "split": "train"}),
        ({"path": "org/x", "split": "test"}, {"name": "org/x", "split": "test"}, "org/x"),
        (
            {"path": "org/x", "name": "main", "split": "validation", "data_files": ["a.json"]},
            {"name": "org/x", "subset": "main", "split": "validation", "options": {"data_files": ["a.json"]}},
            {"name": "org/x", "subset": "main", "split": "validation", "options": {"data_files": ["a.json"]}},
        ),
        (
            {"path": "json", "data_files": "a.json"},
            {"name": "json", "options": {"data_files": "a.json"}},
            {"name": "json", "split": "train", "options": {"data_files": "a.json"}},
        ),
        ({"path": "folder/rows.jsonl", "ds_type": "json", "split": "train"}, "folder/rows.jsonl", "folder/rows.jsonl"),
    ],
)
def test_axolotl_s_data_keeps_its_subset_and_split(part: dict[str, Any], train: Any, held_out: Any) -> None:
    tree = {"rl": "grpo", "micro_batch_size": 8, "datasets": [part], "test_datasets": [part]}
    written = run(AXOLOTL, tree).written
    assert (written["data.train"], written["data.eval"]) == (train, [held_out])
    config = DataConfig(train=written["data.train"], eval=written["data.eval"])
    for key in ("data.train", "data.eval"):
        (source,) = sources_of(written[key], key, config)
        assert source.split == part.get("split", "train") or source.name.endswith(".jsonl")  # a file has one split


def test_axolotl_s_held_out_entries_need_a_path_too() -> None:
    tree = {"rl": "grpo", "micro_batch_size": 8, "datasets": [{"path": "org/x"}], "test_datasets": [{"name": "main"}]}
    with pytest.raises(ConfigError, match="test_datasets: every entry needs `path`"):
        run(AXOLOTL, tree)


def test_easyr1_s_example() -> None:
    """Worked by hand: 512 prompts of 5, updates of 128 prompts, 12,000 // 512 = 23 steps an epoch."""
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
        "eval": {"every": 5, "num_samples": 1, "temperature": 0.6},
        "checkpoint": {"every": 5, "keep": 3},
        "logging": {"trackers": [{"name": "wandb", "project": "easy_r1"}]},
    }
    assert not result.unknown
    assert not result.unsupported


def test_easyr1_s_script_changes_the_example() -> None:
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
            {"worker.actor.optim.lr_warmup_ratio": 0.1, "trainer.max_steps": 50},
            {"learner.warmup_steps": 10, "train.num_steps": 50},  # 50 steps of 2 updates
        ),
        (
            {"worker.actor.optim.lr_warmup_steps": 10, "worker.actor.ppo_epochs": 3},
            {"learner.warmup_steps": 60},  # 10 steps of 2 updates, gone through 3 times
        ),
        ({"data.train_files": "org/data@dev", "data.answer_key": "label"}, {"data.columns": {"answer": "label"}}),
    ],
)
def test_easyr1_s_options(options: dict[str, Any], expected: dict[str, Any]) -> None:
    written = run(EASYR1, EASY | options).written
    assert {key: written[key] for key in expected} == expected


def test_easyr1_s_refusals() -> None:
    with pytest.raises(ConfigError, match="does not divide"):
        run(EASYR1, EASY | {"worker.actor.global_batch_size": 100})
    other = run(EASYR1, EASY | {"algorithm.adv_estimator": "grpo_passk", "worker.rollout.top_p": 0.9})
    assert {left.option for left in other.unsupported} >= {"algorithm.adv_estimator", "worker.rollout.top_p"}


def test_easyr1_s_own_functions() -> None:
    mine = {"worker.reward.reward_function": "./mine.py:score", "worker.reward.reward_function_kwargs": {"weight": 0.2}}
    entry = {"name": "easyr1_function", "function": "./mine.py:score", "options": {"weight": 0.2}}
    own = run(EASYR1, EASY | mine)
    assert own.written["rewards"] == [entry]
    assert not [left for left in own.unsupported if "reward" in left.option]
    single = run(EASYR1, EASY | mine | {"worker.reward.reward_type": "sequential"})
    assert single.written["rewards"] == [entry | {"reward_type": "sequential"}]


def test_openrlhf_s_prorl_script() -> None:
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


def test_openrlhf_s_flat_flags_are_the_dotted_ones() -> None:
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
def test_openrlhf_s_corrections(options: dict[str, Any], expected: Any) -> None:
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
def test_openrlhf_s_options(options: dict[str, Any], expected: dict[str, Any]) -> None:
    written = run(OPENRLHF, OPEN | options).written
    assert {key: written[key] for key in expected} == expected


def test_openrlhf_s_batch_must_divide() -> None:
    with pytest.raises(ConfigError, match="does not divide the 8192 samples"):
        run(OPENRLHF, OPEN | {"train.batch_size": 1000})
    uneven = run(OPENRLHF, OPEN | {"rollout.batch_size": 16, "train.batch_size": 4})
    assert uneven.written["train.minibatches_per_step"] == 16
    assert "train.batch_size" in [left.option for left in uneven.unsupported]
