"""Recipes of open-r1."""

from __future__ import annotations

from rlsys.commands.importers.dialects.open_r1 import DIALECT as OPEN_R1
from rlsys.commands.importers.recipe import RunSize
from rlsys.commands.importers.recipe_file import read
from rlsys.commands.importers.translate import translate
from tests.unit.commands.importers.imports import RECIPES

ROWS = RunSize(num_rows=800)


def test_the_demonstration_of_open_r1() -> None:
    """Worked by hand from the recipe, 8 processes and the 93,733 problems of its data."""
    source = read(RECIPES / "open_r1_demo.yaml")
    result = translate(source.tree, OPEN_R1, "0.18", RunSize(num_processes=8, num_rows=93733))
    config = result.config
    prompt = config["data"].pop("system_prompt")
    assert prompt.endswith("<think>\n...\n</think>\n<answer>\n...\n</answer>")
    assert config == {
        "seed": 42,
        "model": {"path": "Qwen/Qwen2.5-1.5B-Instruct"},
        "data": {
            "train": "open-r1/OpenR1-Math-220k",
            "eval": None,
            "prompt_column": "problem",
            "chat_template": True,
            "max_prompt_tokens": 512,
            "overlong": "filter",
        },
        # 16 * 8 * 4 completions in groups of 16; 93,733 // 32 prompts.
        "train": {"num_steps": 2929, "prompts_per_step": 32, "samples_per_prompt": 16},
        "rollout": {"max_response_tokens": 1024},
        "learner": {
            "dtype": "bfloat16",
            "lr": 2e-5,
            "lr_schedule": "cosine",
            "warmup_steps": 293,  # a tenth, rounded up
            "gradient_checkpointing": True,
        },
        # beta 0.04 is TRL 0.18's default and our preset's; bnpo is TRL 0.18's.
        "algorithm": {"aggregation": {"name": "local_token_mean"}},
        "rewards": [{"name": name, "weight": 1.0} for name in ("accuracy", "format", "tag_count")],
        "checkpoint": {"every": 2929, "keep": 1},
        "logging": {"trackers": ["wandb"]},
    }
    assert [left.option for left in result.unsupported] == ["push_to_hub"]
    assert not result.unknown


def test_options_of_all_rewards_go_to_the_reward_that_uses_them() -> None:
    options = {
        "reward_funcs": [
            "cosine",
            "repetition_penalty",
            "length",
            "code_format",
            "soft_overlong_punishment",
            "ioi_code",
        ],
        "cosine_max_len": 500,
        "repetition_n_grams": 4,
        "code_language": "cpp",
        "max_completion_len": 2048,
        "dataset_name": "d",
    }
    result = translate(options, OPEN_R1, "0.18", ROWS)
    assert result.written["rewards"] == [
        {
            "name": "cosine",
            "min_value_wrong": 0.0,
            "max_value_wrong": -0.5,
            "min_value_correct": 0.5,
            "max_value_correct": 1.0,
            "max_len": 500,
        },
        {"name": "repetition_penalty", "n_grams": 4, "max_penalty": -1.0},
        {"name": "length"},
        {"name": "code_format", "language": "cpp"},
        {"name": "soft_overlong_punishment", "max_response_tokens": 2048, "buffer_tokens": 4096},
    ]
    assert "ioi_code" in next(left.reason for left in result.unsupported if left.option == "reward_funcs")
    unused = translate({"cosine_max_len": 500, "dataset_name": "d"}, OPEN_R1, "0.18", ROWS)
    assert [left.option for left in unused.ignored] == ["cosine_max_len"]


def test_the_weight_of_an_unknown_reward_is_left_out_too() -> None:
    """The rewards of open-r1's recipe for Codeforces, of which rlsys lacks the first."""
    options = {"reward_funcs": ["cf_code", "code_format"], "reward_weights": [1.0, 0.1], "code_language": "cpp"}
    result = translate(options | {"dataset_name": "d"}, OPEN_R1, "0.18", ROWS)
    assert result.written["rewards"] == [{"name": "code_format", "language": "cpp", "weight": 0.1}]
    reasons = {left.option: left.reason for left in result.unsupported}
    assert list(reasons) == ["reward_funcs"]
    assert "'cf_code'" in reasons["reward_funcs"]
    (weights,) = [taken for taken in result.translated if taken.option == "reward_weights"]
    assert "1.0 of 'cf_code'" in weights.note


def test_weights_without_rewards_are_ignored() -> None:
    options = {"reward_funcs": ["cf_code", "ioi_code"], "reward_weights": [1.0, 0.1], "dataset_name": "d"}
    result = translate(options, OPEN_R1, "0.18", ROWS)
    assert "rewards" not in result.written
    (left,) = result.unsupported
    assert "'cf_code', 'ioi_code'" in left.reason
    assert [left.option for left in result.ignored] == ["reward_weights"]


def test_one_reward_and_one_weight_need_no_list() -> None:
    options = {"reward_funcs": "cosine", "reward_weights": 0.5, "cosine_max_len": 500, "dataset_name": "d"}
    result = translate(options, OPEN_R1, "0.18", ROWS)
    (reward,) = result.written["rewards"]
    assert (reward["name"], reward["max_len"], reward["weight"]) == ("cosine", 500, 0.5)
    assert not result.ignored


def test_a_mixture_draws_shares_of_rows() -> None:
    parts = [{"id": "a", "config": "default", "split": "train", "weight": 0.5, "columns": ["x"]}, {"id": "b"}]
    result = translate({"dataset_mixture": {"datasets": parts, "seed": 0}}, OPEN_R1, "0.18", ROWS)
    assert result.written["data.train"] == [
        {"name": "a", "subset": "default", "split": "train", "share": 0.5},
        {"name": "b"},
    ]
    note = next(taken.note for taken in result.translated if taken.option == "dataset_mixture")
    assert "entries that are not carried over: columns" in note
