"""Recipes of axolotl."""

from __future__ import annotations

from typing import Any

import pytest

from rlsys.commands.importers.dialects.axolotl import DIALECT as AXOLOTL
from rlsys.config.schema import DataConfig
from rlsys.data.sources import sources_of
from rlsys.errors import ConfigError
from tests.unit.commands.importers.imports import run


def test_the_r1_example_of_axolotl() -> None:
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


def test_defaults_of_axolotl_replace_those_of_trl() -> None:
    tree = {"base_model": "m", "rl": "grpo", "micro_batch_size": 8, "learning_rate": 1e-6, "trl": {"beta": 0.1}}
    result = run(AXOLOTL, tree, rows=800)
    assert result.written["learner.lr_schedule"] == "cosine"
    assert result.written["learner.warmup_steps"] == 24  # 3% of 800
    assert result.written["algorithm.kl.coef"] == 0.1
    assert {"lr_scheduler", "warmup_ratio"} <= {row.option for row in result.defaults}  # under axolotl's names
    synchronised = run(AXOLOTL, tree | {"trl": {"beta": 0.1, "sync_ref_model": True}}, rows=800).written
    assert (synchronised["algorithm.refresh.every"], synchronised["algorithm.refresh.alpha"]) == (64, 0.9)


def test_adapters_and_asynchronous_sampling() -> None:
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


def test_names_of_trl_are_unknown_options() -> None:
    result = run(AXOLOTL, {"rl": "grpo", "micro_batch_size": 8, "per_device_train_batch_size": 4, "beta": 0.1})
    assert [left.option for left in result.unknown] == ["per_device_train_batch_size", "beta"]
    with pytest.raises(ConfigError, match="rl=dpo"):
        run(AXOLOTL, {"rl": "dpo", "micro_batch_size": 8})


def test_keys_of_a_dataset_that_are_not_carried_over_are_noted() -> None:
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
def test_a_dataset_keeps_its_subset_and_split(part: dict[str, Any], train: Any, held_out: Any) -> None:
    tree = {"rl": "grpo", "micro_batch_size": 8, "datasets": [part], "test_datasets": [part]}
    written = run(AXOLOTL, tree).written
    assert (written["data.train"], written["data.eval"]) == (train, [held_out])
    config = DataConfig(train=written["data.train"], eval=written["data.eval"])
    for key in ("data.train", "data.eval"):
        (source,) = sources_of(written[key], key, config)
        assert source.split == part.get("split", "train") or source.name.endswith(".jsonl")  # a file has one split


def test_held_out_datasets_need_a_path_too() -> None:
    tree = {"rl": "grpo", "micro_batch_size": 8, "datasets": [{"path": "org/x"}], "test_datasets": [{"name": "main"}]}
    with pytest.raises(ConfigError, match="test_datasets: every entry needs `path`"):
        run(AXOLOTL, tree)


@pytest.mark.parametrize(
    ("options", "every"),
    [
        ({"eval_steps": 50}, 50),
        ({"eval_strategy": "steps"}, 10),
        ({"eval_strategy": "epoch"}, 800),
        ({"evals_per_epoch": 4}, 200),
        ({"eval_strategy": "no"}, 0),
        ({}, 0),
    ],
)
def test_held_out_data_is_evaluated_as_asked(options: dict[str, Any], every: int) -> None:
    tree = {"rl": "grpo", "micro_batch_size": 8, "datasets": [{"path": "x"}], "test_datasets": [{"path": "y"}]}
    result = run(AXOLOTL, tree | options, rows=800)
    assert result.written["eval.every"] == every
    assert "eval_strategy" not in [row.option for row in result.unsupported]


@pytest.mark.parametrize(
    ("options", "updates"),
    [
        ({"max_steps": 1000}, 30),
        ({"max_steps": 10000}, 100),  # at most, where the recipe says nothing
        ({"max_steps": 10000, "warmup_ratio": 0.03}, 300),
        ({"max_steps": 99, "warmup_ratio": 0.1}, 9),
        ({"max_steps": 99, "warmup_ratio": 0.01}, 0),
        ({"max_steps": 150, "warmup_ratio": 0.01}, 2),  # axolotl makes 1 update 2
        ({"max_steps": 1000, "warmup_steps": 7}, 7),
        ({"max_steps": 1000, "warmup_steps": 0}, 0),
    ],
)
def test_warm_up_is_counted_as_axolotl_counts_it(options: dict[str, Any], updates: int) -> None:
    result = run(AXOLOTL, {"rl": "grpo", "micro_batch_size": 8} | options)
    assert result.written["learner.warmup_steps"] == updates
