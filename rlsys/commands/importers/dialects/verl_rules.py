"""Rules that verl's table cannot express: value maps, batches, data, rewards."""

from __future__ import annotations

from typing import Any

from rlsys.commands.importers.dialects import shared
from rlsys.commands.importers.dialects.easyr1_rules import KL as EASYR1_KL
from rlsys.commands.importers.options import Noted, UnsupportedError
from rlsys.commands.importers.recipe import ABSENT, Recipe

EPS = 1e-6  # what verl adds to a group's standard deviation
ESTIMATORS: dict[str, Any] = {
    "gae": {"name": "gae"},
    "grpo": {"name": "grpo", "eps": EPS},
    "gdpo": {"name": "gdpo", "eps": EPS},
    "rloo": {"name": "rloo"},
    "rloo_vectorized": {"name": "rloo"},
    "remax": {"name": "remax"},
    "opo": {"name": "opo"},
    "gpg": {"name": "gpg"},
    "reinforce_plus_plus": {"name": "reinforce_pp"},
    "reinforce_plus_plus_baseline": {"name": "reinforce_pp_baseline"},
}
OTHER_ESTIMATOR = UnsupportedError(
    "rlsys has no estimator '{value}', so grpo was written", {"name": "grpo", "eps": EPS}
)
KL = EASYR1_KL | {name: name for name in ("k1", "k2", "k3")}
OTHER_KL = UnsupportedError("rlsys has no estimator '{value}', so k3 was written", "k3")
LOSSES = {"vanilla": "ppo_clip", "gspo": "gspo", "sapo": "sapo", "cispo": "cispo", "clip_cov": "clip_cov",
          "kl_cov": "kl_cov", "dppo_tv": "dppo_tv", "dppo_kl": "dppo_kl"}  # fmt: skip
NO_REWARD = (
    "without a function verl chooses the reward by the column data_source, so none is written: set "
    "rewards=[{name: math_answer}] or another"
)


def files(named: Any) -> Any:
    """Return the source of data: one file, or several as a list."""
    names = [str(name) for name in shared.listed(named)]
    return names if len(names) > 1 else names[0] if names else None


def minibatches(recipe: Recipe, update: Any) -> int:
    """Return the updates of a step: both are counted in prompts."""
    prompts = int(recipe.written["train.prompts_per_step"])
    counted = f"data.train_batch_size={prompts}, both counted in prompts"
    return shared.whole_updates("actor_rollout_ref.actor.ppo_mini_batch_size", update, prompts, counted)


def warmup_steps(recipe: Recipe, steps: Any) -> Any:
    """Return the updates of warm-up; 0 or less leaves it to the share."""
    return shared.warmup_of_steps(recipe, steps) if int(steps) > 0 else ABSENT


def warmup_share(recipe: Recipe, share: Any) -> Any:
    """Return the updates of warm-up, unless the number of its steps is given."""
    has_number = int(recipe.value("actor_rollout_ref.actor.optim.lr_warmup_steps") or 0) > 0
    return ABSENT if has_number else shared.warmup_share_of_steps(recipe, share)


def reward_coefficient(recipe: Recipe, in_reward: Any) -> Any:
    """Return the coefficient of a KL penalty in the reward, 0 where there is none."""
    return float(recipe.value("algorithm.kl_ctrl.kl_coef")) if in_reward else 0.0


def aggregation(recipe: Recipe, mode: Any) -> Any:
    """Return how the loss averages over tokens; a sum over a response is divided by a constant length."""
    length = recipe.value("actor_rollout_ref.actor.loss_scale_factor") or recipe.value("data.max_response_length")
    known = {
        "token-mean": {"name": "token_mean"},
        "seq-mean-token-mean": {"name": "sequence_mean"},
        "seq-mean-token-sum": {"name": "constant_length", "length": 1},
        "seq-mean-token-sum-norm": {"name": "constant_length", "length": int(length)},
    }
    other = UnsupportedError("rlsys has no aggregation '{value}', so token_mean was written", {"name": "token_mean"})
    return known.get(mode, other)


def correction(recipe: Recipe, level: Any) -> Any:
    """Return what allows for the engine and the trainer not agreeing: weights cut from above."""
    high = float(recipe.value("algorithm.rollout_correction.rollout_is_threshold"))
    return [{"name": "truncate", "level": str(level), "high": high}]


def max_tries(count: Any) -> Any:
    """Return how often prompts are drawn again."""
    return int(count) if int(count) > 0 else Noted(1000, "verl sets no bound; 1000 was written")


def evaluation_samples(recipe: Recipe, count: Any) -> int:
    """Return the drawn samples per held-out prompt, beside the greedy one: none where verl draws none."""
    return int(count) if recipe.value("actor_rollout_ref.rollout.val_kwargs.do_sample") else 0


def rewards(recipe: Recipe) -> None:
    """Write a reward function, which is called as verl calls it, a reward model, and DAPO's penalty for length."""
    custom = "reward.custom_reward_function"
    path, model = recipe.value(f"{custom}.path"), recipe.value("reward.reward_model.model_path")
    found: list[dict[str, Any]] = []
    if recipe.value("reward.reward_model.enable") and model:
        found.append({"name": "reward_model", "model": str(model)})
    if path is not None:
        node = {"name": "verl_function", "function": f"{path}:{recipe.value(f'{custom}.name')}"}
        kind = {"reward_type": "batch"} if recipe.value("reward.reward_manager.name") == "batch" else {}
        options = recipe.value(f"{custom}.reward_kwargs")
        found = [node | kind | ({"options": dict(options)} if options else {})]
    if not found:
        recipe.mark_unsupported(f"{custom}.path", NO_REWARD)
    if recipe.value("reward_model.overlong_buffer.enable"):
        bound = {"max_response_tokens": int(recipe.written["rollout.max_response_tokens"])}
        buffer = int(recipe.value("reward_model.overlong_buffer.len"))
        weight = float(recipe.value("reward_model.overlong_buffer.penalty_factor"))
        penalty = {"name": "soft_overlong_punishment", "weight": weight, **bound, "buffer_tokens": buffer}
        found = [*(found or [{"name": "math_answer"}]), penalty]
    if found:
        recipe.written["rewards"] = found
