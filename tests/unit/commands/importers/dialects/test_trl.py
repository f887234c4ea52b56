"""Recipes of TRL: single options and a whole script."""

from __future__ import annotations

import ast
import importlib.util
from pathlib import Path
from typing import Any

import pytest

from rlsys.commands.importers import our_defaults
from rlsys.commands.importers.dialects import trl, trl_rules
from rlsys.commands.importers.options import TableRow, default_at
from rlsys.commands.importers.recipe import ABSENT, NONE_STATED, RunSize
from rlsys.commands.importers.recipe_file import read
from rlsys.commands.importers.translate import Translation, translate
from rlsys.config.dotted import nested
from rlsys.errors import ConfigError
from tests.unit.commands.importers.imports import RECIPES

ROWS = RunSize(num_rows=800)


def run(options: dict[str, Any], version: str = "1.16") -> Translation:
    return translate(options, trl.DIALECT, version, ROWS)


@pytest.mark.parametrize(
    ("options", "loss", "aggregation"),
    [
        ({}, {"name": "ppo_clip", "clip_low": 0.2, "clip_high": 0.2}, {"name": "token_mean"}),
        (
            {"loss_type": "grpo", "epsilon": 0.1},
            {"name": "ppo_clip", "clip_low": 0.1, "clip_high": 0.1},
            {"name": "sequence_mean"},
        ),
        (
            {"loss_type": "bnpo", "epsilon_high": 0.28, "delta": 4.0},
            {"name": "ppo_clip", "clip_low": 0.2, "clip_high": 0.28, "dual_clip": 4.0},
            {"name": "local_token_mean"},
        ),
        (
            {"loss_type": "dr_grpo", "max_completion_length": 99},
            {"name": "ppo_clip", "clip_low": 0.2, "clip_high": 0.2},
            {"name": "constant_length", "length": 99},
        ),
        ({"loss_type": "cispo", "epsilon_high": 5.0}, {"name": "cispo", "ratio_max": 5.0}, {"name": "token_mean"}),
        (
            {"loss_type": "sapo", "sapo_temperature_neg": 1.2},
            {"name": "sapo", "temperature_pos": 1.0, "temperature_neg": 1.2},
            {"name": "sequence_mean"},
        ),
        (
            {"loss_type": "grpo", "importance_sampling_level": "sequence", "epsilon": 3e-4, "epsilon_high": 4e-4},
            {"name": "gspo", "clip_low": 3e-4, "clip_high": 4e-4},
            {"name": "sequence_mean"},
        ),
        (
            {"loss_type": "luspo", "importance_sampling_level": "sequence"},
            {"name": "gspo", "clip_low": 0.2, "clip_high": 0.2},
            {"name": "constant_length", "length": 1},  # the sum over a response's tokens
        ),
    ],
)
def test_a_loss_type_is_a_loss_and_an_aggregation(
    options: dict[str, Any], loss: dict[str, Any], aggregation: dict[str, Any]
) -> None:
    result = run(options)
    assert result.written["algorithm.policy_loss"] == loss
    assert result.written["algorithm.aggregation"] == aggregation
    assert not result.unsupported


@pytest.mark.parametrize(
    ("options", "unsupported"),
    [
        ({"loss_type": "vespo"}, "loss_type"),
        ({"loss_type": "cispo", "importance_sampling_level": "sequence"}, "importance_sampling_level"),
        ({"importance_sampling_level": "sequence", "delta": 3.0}, "delta"),
        ({"scale_rewards": "mean"}, "scale_rewards"),
        ({"top_p": 0.9}, "top_p"),
        ({"top_k": 50}, "top_k"),
        ({"min_p": 0.1}, "min_p"),
        ({"temperature": 0}, "temperature"),
        ({"optim": "paged_adamw_8bit"}, "optim"),
        ({"fp16": True}, "fp16"),
        ({"sync_ref_model": True}, "sync_ref_model"),
        ({"report_to": ["swanlab"]}, "report_to"),
        ({"deepspeed": "my_config.json"}, "deepspeed"),
        ({"dataset_name": "d", "reward_funcs": ["reasoning_accuracy_reward"]}, "reward_funcs"),
    ],
)
def test_options_without_counterpart_are_unsupported(options: dict[str, Any], unsupported: str) -> None:
    assert unsupported in [left.option for left in run(options).unsupported]


@pytest.mark.parametrize(
    "options", [{"top_p": 1.0}, {"top_k": 0}, {"top_k": -1}, {"min_p": 0.0}, {"optim": "adamw_torch_fused"}]
)
def test_neutral_values_need_no_counterpart(options: dict[str, Any]) -> None:
    result = run(options)
    assert [taken.option for taken in result.translated] == list(options)
    assert not result.unsupported


@pytest.mark.parametrize(
    ("options", "advantage"),
    [
        ({}, {"name": "grpo", "scale": "group"}),
        ({"scale_rewards": True}, {"name": "grpo", "scale": "group"}),
        ({"scale_rewards": False}, {"name": "grpo", "scale": "none"}),
        ({"scale_rewards": "batch"}, {"name": "grpo", "scale": "batch"}),
        ({"multi_objective_aggregation": "normalize_then_sum"}, {"name": "gdpo"}),
    ],
)
def test_scale_rewards(options: dict[str, Any], advantage: dict[str, Any]) -> None:
    assert run(options).written["algorithm.advantage"] == advantage


@pytest.mark.parametrize(
    ("options", "version", "expected"),
    [
        ({"use_vllm": True}, "1.10", [{"name": "mask", "level": "sequence", "high": 3.0}]),
        ({"use_vllm": True}, "0.18", None),  # not there yet
        ({}, "1.10", None),  # nothing samples but the trainer
        ({"use_vllm": True, "vllm_importance_sampling_correction": False}, "1.10", None),
        (
            {
                "use_vllm": True,
                "vllm_importance_sampling_mode": "token_truncate",
                "vllm_importance_sampling_cap": 2.0,  # the name until 1.8
                "vllm_importance_sampling_clip_min": 0.5,
                "off_policy_mask_threshold": 0.1,
            },
            "1.10",
            [{"name": "truncate", "level": "token", "high": 2.0, "low": 0.5}, {"name": "opsm", "threshold": 0.1}],
        ),
    ],
)
def test_importance_sampling_is_a_correction(options: dict[str, Any], version: str, expected: Any) -> None:
    assert run(options, version).written["algorithm.corrections"] == expected


def test_kl_reference_and_entropy() -> None:
    on = run({"beta": 0.02, "sync_ref_model": True, "ref_model_sync_steps": 64, "num_iterations": 4}).written
    assert (on["algorithm.kl.coef"], on["algorithm.kl.unbiased"]) == (0.02, True)
    assert (on["algorithm.refresh.every"], on["algorithm.refresh.alpha"]) == (16, 0.6)  # four updates a step
    off = run({"use_bias_correction_kl": True})
    assert off.written["algorithm.kl.coef"] == 0.0
    assert [left.option for left in off.ignored] == ["use_bias_correction_kl"]
    adaptive = run({"entropy_coef": 0.01, "use_adaptive_entropy": True, "entropy_coef_max": 0.5}).written
    names = ("coef", "target", "delta", "max_coef")
    assert [adaptive[f"algorithm.entropy.{name}"] for name in names] == [0.01, 0.2, 0.005, 0.5]


@pytest.mark.parametrize(
    ("options", "version", "dtype"),
    [
        ({}, "1.16", "bfloat16"),  # unset is yes
        ({}, "0.18", "float32"),
        ({"bf16": False}, "1.16", "float32"),
        ({"torch_dtype": "bfloat16"}, "0.18", "bfloat16"),
        ({"bf16": False, "dtype": "auto"}, "1.16", "bfloat16"),
    ],
)
def test_precision(options: dict[str, Any], version: str, dtype: str) -> None:
    assert run(options, version).written["learner.dtype"] == dtype


def test_lora() -> None:
    result = run({"use_peft": True, "lora_r": 8, "use_rslora": True, "load_in_4bit": True})
    found = {key.removeprefix("learner.lora."): value for key, value in result.written.items() if ".lora." in key}
    assert found == {
        "rank": 8,
        "alpha": 32,
        "dropout": 0.05,
        "use_rslora": True,
        "use_dora": False,
        "target_modules": ["q_proj", "v_proj"],  # peft's own choice
        "quantize_base": "nf4",
    }
    everywhere = run({"use_peft": True, "lora_target_modules": ["all-linear"]}).written
    assert everywhere["learner.lora.target_modules"] == "all-linear"
    without = run({"lora_r": 8})
    assert [left.option for left in without.ignored] == ["lora_r"]
    assert not any(".lora." in key for key in without.written)


@pytest.mark.parametrize(
    ("value", "stage"),
    [("zero3.json", 3), ("ds_zero_2.json", 2), ({"zero_optimization": {"stage": 1}}, 1), ("configs/stage3.yaml", 3)],
)
def test_the_stage_of_a_deepspeed_file(value: Any, stage: int) -> None:
    assert trl_rules.zero_stage(value) == stage


def test_rewards_keep_their_order_and_weights() -> None:
    functions = ["accuracy_reward", "my.pkg.score", "org/reward-model"]
    options = {"reward_funcs": functions, "reward_weights": [1, 2, 3], "dataset_name": "d"}
    assert run(options).written["rewards"] == [
        {"name": "accuracy", "weight": 1.0},
        {"name": "my.pkg:score", "weight": 2.0},
        {"name": "reward_model", "model": "org/reward-model", "weight": 3.0},
    ]
    with pytest.raises(ConfigError, match="2 values for 3 rewards"):
        run(options | {"reward_weights": [1, 2]})


def test_a_mixture_of_datasets() -> None:
    mixture = [{"path": "a", "name": "sub", "split": "train[:10]"}, {"path": "json", "data_files": "x.json"}]
    result = run({"datasets": mixture, "dataset_name": "ignored"})
    assert result.written["data.train"] == [
        {"name": "a", "subset": "sub", "split": "train[:10]"},
        {"name": "json", "options": {"data_files": "x.json"}},
    ]
    assert [left.option for left in result.ignored] == ["dataset_name"]


def test_evaluation_uses_the_held_out_split() -> None:
    options = {"dataset_name": "d", "dataset_config": "c", "dataset_test_split": "validation", "eval_strategy": "steps"}
    written = run(options | {"eval_steps": 50}).written
    assert written["data.train"] == {"name": "d", "subset": "c"}
    assert written["data.eval"] == {"name": "d", "subset": "c", "split": "validation"}
    assert written["eval.every"] == 50
    assert run({"dataset_name": "d"}).written["data.eval"] is None


BY_VERSION = [
    ("beta", {"0.18": 0.04, "0.19": 0.0, "1.0": 0.0, "1.8": 0.0, "1.10": 0.0}),
    ("loss_type", {"0.18": "bnpo", "0.19": "bnpo", "1.0": "dapo", "1.8": "dapo", "1.10": "dapo"}),
    ("max_prompt_length", {"0.18": 512, "0.19": 512, "1.0": ABSENT, "1.8": ABSENT, "1.10": ABSENT}),
    ("max_completion_length", {"0.18": 256, "0.19": 256, "1.0": 256, "1.8": 256, "1.10": 512}),
    ("vllm_mode", {"0.18": "server", "0.19": "server", "1.0": "colocate", "1.8": "colocate", "1.10": "colocate"}),
    ("scale_rewards", {"0.18": True, "0.19": True, "1.0": "group", "1.8": "group", "1.10": "group"}),
    ("vllm_importance_sampling_correction", {"0.18": ABSENT, "0.19": ABSENT, "1.0": True, "1.8": True, "1.10": True}),
    ("use_bias_correction_kl", {"0.18": ABSENT, "0.19": ABSENT, "1.0": False, "1.8": False, "1.10": True}),
    ("gradient_checkpointing", {"0.18": False, "0.19": False, "1.0": True, "1.8": True, "1.10": True}),
]


@pytest.mark.parametrize(
    ("option", "by_version"), BY_VERSION, ids=lambda value: value if isinstance(value, str) else ""
)
def test_defaults_change_as_in_the_releases(option: str, by_version: dict[str, Any]) -> None:
    assert {version: default_at(trl.OPTIONS[option], version) for version in by_version} == by_version


def test_a_default_that_changed_changes_what_is_written() -> None:
    old, new = run({}, "0.18"), run({}, "1.16")
    assert (old.written["algorithm.kl.coef"], new.written["algorithm.kl.coef"]) == (0.04, 0.0)
    assert (old.written["data.max_prompt_tokens"], old.written["data.overlong"]) == (512, "filter")
    assert "data.max_prompt_tokens" not in new.written
    listed = {row.option: row for row in new.defaults}
    assert (listed["beta"].theirs, listed["beta"].ours) == (0.0, {"algorithm.kl.coef": 0.04})
    assert listed["loss_type"].written["algorithm.aggregation"] == {"name": "token_mean"}
    assert "epsilon" not in listed  # 0.2 on both sides


def test_an_option_of_another_version_is_reported() -> None:
    (remark,) = run({"max_prompt_length": 512, "num_processes": 1}).remarks
    assert "trl 1.16 does not have max_prompt_length: say with --version" in remark
    early = run({"use_adaptive_entropy": True, "num_processes": 1}, "0.18")
    assert "trl 0.18 does not have use_adaptive_entropy" in early.remarks[0]
    assert early.written["algorithm.entropy.target"] == 0.2  # what it came with
    assert not run({"max_prompt_length": 512, "num_processes": 1}, "0.18").remarks


def fields(path: Path, name: str) -> dict[str, Any]:
    """Return the fields of a dataclass in a file with those defaults that are literals."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    body = next(node.body for node in tree.body if isinstance(node, ast.ClassDef) and node.name == name)
    found = {}
    for statement in body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        value: Any = statement.value
        if isinstance(value, ast.Call):
            value = next((keyword.value for keyword in value.keywords if keyword.arg == "default"), None)
        found[statement.target.id] = ast.literal_eval(value) if isinstance(value, ast.Constant | ast.UnaryOp) else ...
    return found


def package(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"{name} is not installed (extra dev)")
    return Path(spec.submodule_search_locations[0])


def installed() -> dict[str, Any]:
    """Return the options of the installed TRL, inherited ones first."""
    root = package("trl")
    files = [
        (package("transformers") / "training_args.py", "TrainingArguments"),
        (root / "trainer/base_config.py", "_BaseConfig"),
        (root / "trainer/grpo_config.py", "GRPOConfig"),
        (root / "trainer/model_config.py", "ModelConfig"),
        (root / "scripts/utils.py", "ScriptArguments"),
        (root / "scripts/grpo.py", "GRPOScriptArguments"),
    ]
    return {name: default for path, class_name in files for name, default in fields(path, class_name).items()}


def test_every_option_of_the_installed_trl_is_known_with_its_default() -> None:
    theirs = installed()
    assert len(theirs) > 150
    known = {name: trl.OPTIONS.get(trl.ALIASES.get(name, name)) for name in theirs}
    assert [name for name, option in known.items() if option is None] == []
    for name, option in known.items():
        assert isinstance(option, TableRow)
        default = default_at(option, "1.16")
        if default in (ABSENT, NONE_STATED) or name in trl.ALIASES or theirs[name] is ...:
            continue
        assert default == theirs[name], name


def test_the_flags_of_a_script() -> None:
    source = read(RECIPES / "trl_grpo.sh")
    result = translate(source.tree, trl.DIALECT, "1.16", RunSize())
    # 4 * 2 processes * 8 steps = 64 completions of 8 prompts, in two updates of 32, used twice: four updates a step.
    expected = {"prompts_per_step": 8, "minibatches_per_step": 2, "updates_per_step": 2, "num_steps": 250}
    assert result.config["train"] == expected
    assert result.config["checkpoint"] == {"every": 125}  # 500 updates
    assert [left.option for left in result.unknown] == ["learing_rate_typo"]
    assert "did you mean 'learning_rate'" in result.unknown[0].reason
    assert [left.option for left in result.unsupported] == ["top_p"]
    assert our_defaults.look_up("algorithm.policy_loss.dual_clip", nested(result.written)) == 4.0
