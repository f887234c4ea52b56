"""open-r1's GRPO: TRL's options and its own (src/open_r1/configs.py), on TRL 0.18."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rlsys.commands.importers.dialects import shared, trl
from rlsys.commands.importers.dialects import trl_rules as rules
from rlsys.commands.importers.dialects.reasons import OWN_LOG
from rlsys.commands.importers.options import (
    Condition,
    Dialect,
    TableRow,
    by_rule,
    ignored,
    plain,
    same,
    several,
    unsupported,
    without,
)
from rlsys.commands.importers.recipe import NONE_STATED, Recipe
from rlsys.errors import ConfigError

HOSTED = "rlsys runs code in the sandbox of its code reward; there is no provider to choose"
EVALUATED_AFTER = "rlsys runs no benchmarks after training: use the command rlsys eval"
PLAIN = ("accuracy", "format", "tag_count", "reasoning_steps", "length", "code", "binary_code")
MISSING = ("ioi_code", "cf_code")
# Rewards with options: each option of ours, the option of theirs that it comes from, and its default.
PER_REWARD: dict[str, dict[str, tuple[str, Any]]] = {
    "cosine": {
        "min_value_wrong": ("cosine_min_value_wrong", 0.0),
        "max_value_wrong": ("cosine_max_value_wrong", -0.5),
        "min_value_correct": ("cosine_min_value_correct", 0.5),
        "max_value_correct": ("cosine_max_value_correct", 1.0),
        "max_len": ("cosine_max_len", 1000),
    },
    "repetition_penalty": {"n_grams": ("repetition_n_grams", 3), "max_penalty": ("repetition_max_penalty", -1.0)},
    "code_format": {"language": ("code_language", "python")},
    "soft_overlong_punishment": {
        "max_response_tokens": ("max_completion_len", 16384),
        "buffer_tokens": ("soft_punish_cache", 4096),
    },
}


MIXTURE = shared.Entries("dataset_mixture", "id", "config", also=("weight",))


def _uses(reward: str) -> Condition:
    return Condition(
        ("reward_funcs",), lambda names: reward in shared.listed(names), f"the reward '{reward}' is not used"
    )


def mixture(recipe: Recipe, asked: Any) -> list[Any]:
    """Return the sources of `dataset_mixture`: a weight there is the share of a dataset's rows."""
    if not isinstance(asked, Mapping) or not asked.get("datasets"):
        raise ConfigError(
            f"dataset_mixture={asked!r}: it needs `datasets`, a list of {{id, config, split, columns, weight}}"
        )
    recipe.note("dataset_mixture", "the rows of a share are drawn with `seed`")
    sources = MIXTURE.sources(recipe, asked["datasets"])
    if asked.get("test_split_size"):
        recipe.note("dataset_mixture", "test_split_size is not carried over: set data.eval to other rows")
    weights = [part.get("weight") for part in asked["datasets"]]
    return [node | ({} if w is None else {"share": w}) for node, w in zip(sources, weights, strict=True)]


def settle(recipe: Recipe) -> None:
    """Let a mixture replace TRL's datasets, and turn evaluation off where it would need the held-out part of one."""
    asked = recipe.value("dataset_mixture")
    if asked is not None:
        recipe.settled["datasets"] = None
    if isinstance(asked, Mapping) and asked.get("test_split_size"):
        recipe.mark_unsupported(
            "eval_strategy", "rlsys does not split off the held-out part of a mixture: set data.eval and eval.every"
        )
        recipe.settled["eval_strategy"] = "no"


def rewards(recipe: Recipe) -> None:
    """Write the rewards; open-r1's options for all of them become options of the one that they are for."""
    known: dict[str, dict[str, Any] | None] = {name: {"name": name} for name in PLAIN} | dict.fromkeys(MISSING)
    for name, options in PER_REWARD.items():
        known[name] = {"name": name} | {ours: recipe.value(theirs) for ours, (theirs, _) in options.items()}
    rules.rewards(recipe, known)


WITHOUT_MIXTURE = without("dataset_mixture", "dataset_mixture names the data")
OPTIONS: dict[str, TableRow] = {
    **trl.OPTIONS,
    **{
        name: replace(trl.OPTIONS[name], when=(WITHOUT_MIXTURE, *trl.OPTIONS[name].conditions))
        for name in ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split", "datasets")
    },
    "reward_funcs": by_rule("rewards", default=["accuracy", "format", "tag_count"]),
    **{
        theirs: by_rule(default=default, also=("rewards",), when=(_uses(reward),))
        for reward, options in PER_REWARD.items()
        for theirs, default in options.values()
    },
    "code_eval_scoring_mode": unsupported(
        "the code reward is the share of tests passed", "weighted_sum", ("weighted_sum",)
    ),
    **dict.fromkeys(
        ("code_eval_test_batch_size", "parallel_code_exec_per_proc", "code_provider", "ioi_provider"), ignored(HOSTED)
    ),
    **dict.fromkeys(("e2b_router_url", "morph_router_url"), ignored(HOSTED)),
    "dataset_prompt_column": same("data.prompt_column", "prompt"),
    "dataset_mixture": several(
        NONE_STATED, {"data.train": mixture, "data.eval": plain(lambda _: None)}, keys=("data.train",)
    ),
    "system_prompt": same("data.system_prompt", NONE_STATED),
    "chat_template": same("model.chat_template", NONE_STATED),
    "wandb_entity": by_rule(default=None, also=("logging.trackers",)),
    "wandb_project": by_rule(default=None, also=("logging.trackers",)),
    "wandb_run_group": unsupported("rlsys does not group runs"),
    "num_completions_to_print": ignored(OWN_LOG),
    "benchmarks": unsupported(EVALUATED_AFTER, None, (None, [])),
    "callbacks": unsupported(
        "rlsys has a training loop of its own, which calls no callbacks of the Trainer", None, (None, [])
    ),
    **dict.fromkeys(("hub_model_revision", "overwrite_hub_revision"), ignored(trl.HUB)),
    "push_to_hub_revision": unsupported(trl.HUB, False),
}
DIALECT = Dialect(
    name="open-r1",
    options=OPTIONS,
    prepare=(settle, rules.settle),
    rules=(shared.fit_microbatch, rewards),
    versions=trl.VERSIONS,
    default_version="0.18",
    versions_of="trl",
    unique_options=tuple(name for name in OPTIONS if name not in trl.OPTIONS),
    aliases=trl.ALIASES | {"dataset_configs": "dataset_config"},
    unique_rewards=frozenset((*PLAIN, *MISSING, *PER_REWARD)),
    always=trl.ALWAYS | {"data.chat_template": True},  # plain prompts become chat messages
    null_is_value=True,
    by_argparse=True,
)
