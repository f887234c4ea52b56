"""open-r1's GRPO: TRL's options and its own (src/open_r1/configs.py), on TRL 0.18."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rlsys.commands.importers import trl, trl_parts
from rlsys.commands.importers.draft import Draft
from rlsys.commands.importers.options import NONE_STATED, Dialect, Option, moot, read, refused, same
from rlsys.errors import ConfigError

HOSTED = "code runs in the sandbox of the code reward; there is no provider to choose"
EVALUATED_AFTER = "rlsys eval evaluates; benchmarks are not run after training"

OPTIONS: dict[str, Option] = {
    **trl.OPTIONS,
    "reward_funcs": read("rewards", default=["accuracy", "format", "tag_count"]),
    "cosine_min_value_wrong": read(default=0.0, also=("rewards",)),
    "cosine_max_value_wrong": read(default=-0.5, also=("rewards",)),
    "cosine_min_value_correct": read(default=0.5, also=("rewards",)),
    "cosine_max_value_correct": read(default=1.0, also=("rewards",)),
    "cosine_max_len": read(default=1000, also=("rewards",)),
    "repetition_n_grams": read(default=3, also=("rewards",)),
    "repetition_max_penalty": read(default=-1.0, also=("rewards",)),
    "code_language": read(default="python", also=("rewards",)),
    "max_completion_len": read(default=16384, also=("rewards",)),
    "soft_punish_cache": read(default=4096, also=("rewards",)),
    "code_eval_scoring_mode": refused("code is scored by the share of tests passed", "weighted_sum", ("weighted_sum",)),
    **dict.fromkeys(
        ("code_eval_test_batch_size", "parallel_code_exec_per_proc", "code_provider", "ioi_provider"), moot(HOSTED)
    ),
    **dict.fromkeys(("e2b_router_url", "morph_router_url"), moot(HOSTED)),
    "dataset_prompt_column": same("data.prompt_column", "prompt"),
    "dataset_mixture": read("data.train", default=NONE_STATED),
    "system_prompt": same("data.system_prompt", NONE_STATED),
    "chat_template": same("model.chat_template", NONE_STATED),
    "wandb_entity": read(default=None, also=("logging.trackers",)),
    "wandb_project": read(default=None, also=("logging.trackers",)),
    "wandb_run_group": refused("runs are not grouped"),
    "num_completions_to_print": moot(trl.OWN_LOG),
    "benchmarks": refused(EVALUATED_AFTER, None, (None, [])),
    "callbacks": refused("callbacks of the Trainer have no place in another loop", None, (None, [])),
    **dict.fromkeys(("hub_model_revision", "overwrite_hub_revision"), moot(trl.HUB)),
    "push_to_hub_revision": refused(trl.HUB, False),
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


def rewards(draft: Draft) -> None:
    """Their registry has our names; their options for all rewards become options of the one that they are for."""
    known: dict[str, dict[str, Any] | None] = {name: {"name": name} for name in PLAIN} | dict.fromkeys(MISSING)
    asked = trl_parts.listed(draft.value("reward_funcs"))
    for name, options in PER_REWARD.items():
        known[name] = {"name": name} | {ours: draft.value(theirs) for ours, theirs in options.items()}
        for option in options.values() if name not in asked else ():
            draft.moot(option, f"the reward '{name}' is not used")
    trl_parts.rewards(draft, known)


def data(draft: Draft) -> None:
    """Plain prompts become chat messages there; a mixture's weight is the share of a dataset's rows."""
    draft.write("data.chat_template", True)
    mixture = draft.value("dataset_mixture")
    if mixture is None:
        trl_parts.data(draft)
        return
    if not isinstance(mixture, Mapping) or not mixture.get("datasets"):
        raise ConfigError(
            f"dataset_mixture needs datasets: a list of {{id, config, split, columns, weight}}: {mixture}"
        )
    draft.write("data.train", [_part(part) for part in mixture["datasets"]])
    draft.write("data.eval", None)
    draft.note("dataset_mixture", "rows of a share are drawn by `seed`")
    trl_parts.left_out(draft, "dataset_mixture", mixture["datasets"], ("id", "config", "split", "weight"))
    if mixture.get("test_split_size"):
        draft.refuse("eval_strategy", "the mixture's held-out part is not split off here: set data.eval and eval.every")
        draft.note("dataset_mixture", "test_split_size is left out: set data.eval to other rows")
    for name in ("dataset_name", "dataset_config", "dataset_train_split", "dataset_test_split"):
        draft.moot(name, "dataset_mixture names the data")


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
    marks=tuple(name for name in OPTIONS if name not in trl.OPTIONS),
    aliases=trl.ALIASES | {"dataset_configs": "dataset_config"},
    reward_marks=frozenset((*PLAIN, *MISSING, *PER_REWARD)),
)
