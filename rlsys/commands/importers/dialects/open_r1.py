"""open-r1's GRPO: TRL's options and its own (src/open_r1/configs.py), on TRL 0.18."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlsys.commands.importers.dialects import trl, trl_parts
from rlsys.commands.importers.options import NONE_STATED, Dialect, Option, by_rule, ignored, same, unsupported
from rlsys.commands.importers.recipe import Recipe
from rlsys.errors import ConfigError

HOSTED = "code runs in the sandbox of the code reward; there is no provider to choose"
EVALUATED_AFTER = "rlsys eval evaluates; benchmarks are not run after training"

OPTIONS: dict[str, Option] = {
    **trl.OPTIONS,
    "reward_funcs": by_rule("rewards", default=["accuracy", "format", "tag_count"]),
    "cosine_min_value_wrong": by_rule(default=0.0, also=("rewards",)),
    "cosine_max_value_wrong": by_rule(default=-0.5, also=("rewards",)),
    "cosine_min_value_correct": by_rule(default=0.5, also=("rewards",)),
    "cosine_max_value_correct": by_rule(default=1.0, also=("rewards",)),
    "cosine_max_len": by_rule(default=1000, also=("rewards",)),
    "repetition_n_grams": by_rule(default=3, also=("rewards",)),
    "repetition_max_penalty": by_rule(default=-1.0, also=("rewards",)),
    "code_language": by_rule(default="python", also=("rewards",)),
    "max_completion_len": by_rule(default=16384, also=("rewards",)),
    "soft_punish_cache": by_rule(default=4096, also=("rewards",)),
    "code_eval_scoring_mode": unsupported(
        "code is scored by the share of tests passed", "weighted_sum", ("weighted_sum",)
    ),
    **dict.fromkeys(
        ("code_eval_test_batch_size", "parallel_code_exec_per_proc", "code_provider", "ioi_provider"), ignored(HOSTED)
    ),
    **dict.fromkeys(("e2b_router_url", "morph_router_url"), ignored(HOSTED)),
    "dataset_prompt_column": same("data.prompt_column", "prompt"),
    "dataset_mixture": by_rule("data.train", default=NONE_STATED),
    "system_prompt": same("data.system_prompt", NONE_STATED),
    "chat_template": same("model.chat_template", NONE_STATED),
    "wandb_entity": by_rule(default=None, also=("logging.trackers",)),
    "wandb_project": by_rule(default=None, also=("logging.trackers",)),
    "wandb_run_group": unsupported("runs are not grouped"),
    "num_completions_to_print": ignored(trl.OWN_LOG),
    "benchmarks": unsupported(EVALUATED_AFTER, None, (None, [])),
    "callbacks": unsupported("callbacks of the Trainer have no place in another loop", None, (None, [])),
    **dict.fromkeys(("hub_model_revision", "overwrite_hub_revision"), ignored(trl.HUB)),
    "push_to_hub_revision": unsupported(trl.HUB, False),
}
PER_REWARD: dict[str, dict[str, str]] = {
    "cosine": {
        "min_value_wrong": "cosine_min_value_wrong",
        "max_value_wrong": "cosine_max_value_wrong",
        "min_value_correct": "cosine_min_value_correct",
        "max_value_correct": "cosine_max_value_correct",
        "max_len": "cosine_max_len",
    },
    "repetition_penalty": {"n_grams": "repetition_n_grams", "max_penalty": "repetition_max_penalty"},
    "code_format": {"language": "code_language"},
    "soft_overlong_punishment": {"max_response_tokens": "max_completion_len", "buffer_tokens": "soft_punish_cache"},
}
"""Options of our rewards, and theirs that they come from."""
PLAIN = ("accuracy", "format", "tag_count", "reasoning_steps", "length", "code", "binary_code")
MISSING = ("ioi_code", "cf_code")


def rewards(recipe: Recipe) -> None:
    """Their registry has our names; their options for all rewards become options of the one that they are for."""
    known: dict[str, dict[str, Any] | None] = {name: {"name": name} for name in PLAIN} | dict.fromkeys(MISSING)
    asked = trl_parts.listed(recipe.value("reward_funcs"))
    for name, options in PER_REWARD.items():
        known[name] = {"name": name} | {ours: recipe.value(theirs) for ours, theirs in options.items()}
        for option in options.values() if name not in asked else ():
            recipe.mark_ignored(option, f"the reward '{name}' is not used")
    trl_parts.rewards(recipe, known)


def data(recipe: Recipe) -> None:
    """Plain prompts become chat messages there; a mixture's weight is the share of a dataset's rows."""
    recipe.write("data.chat_template", True)
    mixture = recipe.value("dataset_mixture")
    if mixture is None:
        trl_parts.data(recipe)
        return
    if not isinstance(mixture, Mapping) or not mixture.get("datasets"):
        raise ConfigError(
            f"dataset_mixture needs datasets: a list of {{id, config, split, columns, weight}}: {mixture}"
        )
    recipe.write("data.train", [_part(part) for part in mixture["datasets"]])
    recipe.write("data.eval", None)
    recipe.note("dataset_mixture", "rows of a share are drawn by `seed`")
    trl_parts.left_out(recipe, "dataset_mixture", mixture["datasets"], ("id", "config", "split", "weight"))
    if mixture.get("test_split_size"):
        recipe.mark_unsupported(
            "eval_strategy", "the mixture's held-out part is not split off here: set data.eval and eval.every"
        )
        recipe.note("dataset_mixture", "test_split_size is left out: set data.eval to other rows")
    for name in ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"):
        recipe.mark_ignored(name, "dataset_mixture names the data")


def _part(part: Any) -> dict[str, Any]:
    if not isinstance(part, Mapping) or not part.get("id"):
        raise ConfigError(f"dataset_mixture.datasets: each entry needs an id; this one is {part!r}")
    node = {"name": str(part["id"])}
    pairs = (("subset", "config"), ("split", "split"), ("share", "weight"))
    return node | {ours: part[theirs] for ours, theirs in pairs if part.get(theirs) is not None}


RULES = tuple(data if rule is trl_parts.data else rule for rule in trl.RULES)
DIALECT = Dialect(
    name="open-r1",
    options=OPTIONS,
    rules=(*RULES, rewards),
    versions=trl.VERSIONS,
    default_version="0.18",
    versions_of="trl",
    unique_options=tuple(name for name in OPTIONS if name not in trl.OPTIONS),
    aliases=trl.ALIASES | {"dataset_configs": "dataset_config"},
    unique_rewards=frozenset((*PLAIN, *MISSING, *PER_REWARD)),
)
