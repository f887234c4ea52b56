"""Rules that EasyR1's table cannot express: value maps, batches, data, rewards, trackers. verl shares some of them."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from rlsys.commands.importers.dialects import shared
from rlsys.commands.importers.options import Noted, UnsupportedError
from rlsys.commands.importers.recipe import ABSENT, Recipe

REWARD_OPTION = "worker.reward."
EPS = 1e-6  # what EasyR1 adds to a group's standard deviation
BOXED = r"(?s)\A<think>.*</think>.*\\boxed\{.*\}.*\Z"  # the format that its example of a reward asks for
ESTIMATORS: dict[str, Any] = {
    "grpo": Noted({"name": "grpo", "eps": EPS}, f"EasyR1 adds {EPS:g} to the standard deviation"),
    "gae": {"name": "gae"},
    "rloo": {"name": "rloo"},
    "remax": {"name": "remax"},
    "reinforce_plus_plus": {"name": "reinforce_pp"},
    "grpo_passk": UnsupportedError(
        "grpo_passk of EasyR1 is arXiv:2503.19595, that of rlsys arXiv:2508.10751 "
        "(algorithm=grpo_passk); grpo was written",
        {"name": "grpo", "eps": EPS},
    ),
}
OTHER_ESTIMATOR = UnsupportedError(
    "rlsys has no estimator '{value}', so grpo was written", {"name": "grpo", "eps": EPS}
)
LOSSES = {"default": "ppo_clip", "gspo": "gspo", "gspo_token": "gspo_token", "cispo": "cispo", "sapo": "sapo"}
AGGREGATIONS = {"token": {"name": "token_mean"}, "seq": {"name": "sequence_mean"}}
KL = {"kl": "k1", "abs": "abs", "mse": "k2", "low_var_kl": "k3"}
DTYPES = {"bf16": "bfloat16", "bfloat16": "bfloat16", "fp32": "float32", "float32": "float32"}


def minibatches(recipe: Recipe, update: Any) -> int:
    """Return the updates of a step: both are counted in prompts."""
    prompts = int(recipe.written["train.prompts_per_step"])
    counted = f"data.rollout_batch_size={prompts}, both counted in prompts"
    return shared.whole_updates("worker.actor.global_batch_size", update, prompts, counted)


def max_tries(count: Any) -> Any:
    """Return how often prompts are drawn again."""
    return Noted(1000, "EasyR1 sets no bound; 1000 was written") if int(count) < 0 else max(int(count), 1)


def training_data(named: Any) -> Any:
    """Return the source of the training data."""
    sources = shared.named_sources(named, "train", "train")
    if not sources:
        raise UnsupportedError("no dataset is named, so none is written: set data.train")
    return shared.only_or_all(sources)


def modules(value: Any) -> Any:
    """Return the modules that get adapters: several are divided by commas there."""
    is_list = isinstance(value, str) and "," in value
    return [part.strip() for part in value.split(",")] if is_list else value


def evaluation(recipe: Recipe, override: Any) -> Any:
    """Return the samples per held-out prompt; `val_override_config` replaces sampling options in evaluation."""
    if not isinstance(override, Mapping) or not override:
        return ABSENT
    recipe.written["eval.temperature"] = float(override.get("temperature", 1.0))
    extra = sorted(set(override) - {"n", "temperature"})
    return Noted(
        int(override.get("n", 1)),
        "rlsys also evaluates one greedy response per prompt" + (f"; {', '.join(extra)} are left out" if extra else ""),
    )


def trackers(recipe: Recipe, asked: Any) -> list[Any]:
    """Return the trackers; the console and the file are always there."""
    names = [str(name) for name in shared.listed(asked) if name not in ("console", "file")]
    if "wandb" not in names:
        recipe.mark_ignored("trainer.project_name", "only the tracker wandb uses it")
    return shared.trackers(recipe, "trainer.logger", names, project=str(recipe.value("trainer.project_name")))


def rewards(recipe: Recipe) -> None:
    """Write the reward: their functions are called as they call them; the published example is known by its path."""
    is_old = recipe.value(f"{REWARD_OPTION}reward_function") is None
    name = (
        f"{REWARD_OPTION}{'score' if is_old and recipe.value(f'{REWARD_OPTION}score_function') else 'reward'}_function"
    )
    function, options = recipe.value(name), recipe.value(f"{REWARD_OPTION}reward_function_kwargs") or {}
    if function is None:
        recipe.mark_unsupported(
            name, "no reward is named, so none is written: set rewards=[{name: my_rewards.py:function}]"
        )
        return
    path, _, attribute = str(function).partition(":")
    if PurePosixPath(path).parts[-2:] in (("reward_function", "math.py"), ("score_function", "math.py")):
        weight = float(options.get("format_weight", 0.1))
        accuracy = {"name": "math_answer", "weight": round(1.0 - weight, 6)}
        recipe.written["rewards"] = [accuracy, {"name": "regex", "weight": weight, "pattern": BOXED}]
        recipe.note(
            name, "the example's accuracy and format; rlsys compares answers by math-verify, EasyR1 by mathruler"
        )
        return
    attribute = attribute or recipe.value(f"{REWARD_OPTION}reward_function_name") or "compute_score"
    entry = {"name": "easyr1_function", "function": f"{path}:{attribute}", "options": dict(options)}
    one_by_one = recipe.value(f"{REWARD_OPTION}reward_type") == "sequential"
    recipe.written["rewards"] = [entry | ({"reward_type": "sequential"} if one_by_one else {})]
    recipe.note(name, "rlsys calls it as EasyR1 does; the file is looked up in the folder where the run starts")
