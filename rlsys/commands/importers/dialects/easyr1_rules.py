"""EasyR1's options that say something only together.

It counts prompts, as we do: `data.rollout_batch_size` of them a step, `worker.actor.global_batch_size` of them an
optimizer update, `worker.rollout.n` responses each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from rlsys.commands.importers.dialects import trl_parts
from rlsys.commands.importers.dialects.trl_batch import NEEDS_ROWS
from rlsys.commands.importers.recipe import Recipe
from rlsys.errors import ConfigError

KL = {"kl": "k1", "abs": "abs", "mse": "k2", "low_var_kl": "k3"}
BOXED = r"(?s)\A<think>.*</think>.*\\boxed\{.*\}.*\Z"
EPS = 1e-6
"""What EasyR1 adds to a group's standard deviation."""


def batch(recipe: Recipe) -> None:
    """Raises ConfigError where the updates do not divide the step, as EasyR1 does."""
    prompts, update = int(recipe.value("data.rollout_batch_size")), int(recipe.value("worker.actor.global_batch_size"))
    if prompts % update:
        raise ConfigError(
            f"worker.actor.global_batch_size={update} does not divide data.rollout_batch_size={prompts}: both count "
            "prompts, and a step is divided into whole updates"
        )
    recipe.write("train.prompts_per_step", prompts)
    recipe.write("train.minibatches_per_step", prompts // update)


def steps(recipe: Recipe) -> None:
    """Steps on both sides: `max_steps` wins over `total_epochs`."""
    max_steps, rows = recipe.value("trainer.max_steps"), recipe.size.num_rows
    if max_steps is not None:
        recipe.write("train.num_steps", int(max_steps))
        recipe.mark_ignored("trainer.total_epochs", "trainer.max_steps decides")
    elif rows is None:
        recipe.mark_unsupported("trainer.total_epochs", NEEDS_ROWS.format(key="train.num_steps"))
    else:
        epoch = max(rows // int(recipe.value("data.rollout_batch_size")), 1)
        recipe.write("train.num_steps", int(recipe.value("trainer.total_epochs")) * epoch)


def schedule(recipe: Recipe) -> None:
    """Warm-up counts steps there, each of which moves the learning rate once, and optimizer updates here."""
    name, floor = (
        str(recipe.value("worker.actor.optim.lr_scheduler_type")),
        recipe.value("worker.actor.optim.min_lr_ratio"),
    )
    if name not in ("constant", "cosine"):
        recipe.mark_unsupported("worker.actor.optim.lr_scheduler_type", f"EasyR1 has no '{name}'; wrote constant")
        name = "constant"
    recipe.write("learner.lr_schedule", name)
    if name == "cosine" and floor:
        recipe.mark_unsupported("worker.actor.optim.min_lr_ratio", "cosine ends at 0 here")
    elif floor is not None:
        recipe.mark_ignored("worker.actor.optim.min_lr_ratio", "it asks for nothing that the schedule does not do")
    fixed, ratio = (
        recipe.value("worker.actor.optim.lr_warmup_steps"),
        recipe.value("worker.actor.optim.lr_warmup_ratio"),
    )
    a_step = int(recipe.written["train.minibatches_per_step"]) * int(recipe.value("worker.actor.ppo_epochs"))
    if fixed is not None:
        recipe.write("learner.warmup_steps", int(fixed) * a_step)
        recipe.mark_ignored("worker.actor.optim.lr_warmup_ratio", "lr_warmup_steps decides")
    elif not ratio:
        recipe.write("learner.warmup_steps", 0)
    elif "train.num_steps" not in recipe.written:
        recipe.mark_unsupported("worker.actor.optim.lr_warmup_ratio", NEEDS_ROWS.format(key="learner.warmup_steps"))
    else:
        recipe.write("learner.warmup_steps", int(float(ratio) * (int(recipe.written["train.num_steps"]) * a_step)))


def advantage(recipe: Recipe) -> None:
    """The estimator by name; gamma and lam are the critic's (and 1 elsewhere)."""
    name = str(recipe.value("algorithm.adv_estimator"))
    gamma, lam = float(recipe.value("algorithm.gamma")), float(recipe.value("algorithm.lam"))
    known: dict[str, dict[str, Any]] = {
        "grpo": {"name": "grpo", "eps": EPS},
        "gae": {"name": "gae", "gamma": gamma, "lam": lam},
        "rloo": {"name": "rloo"},
        "remax": {"name": "remax"},
        "reinforce_plus_plus": {"name": "reinforce_pp"},
    }
    if name == "grpo_passk":
        recipe.mark_unsupported(
            "algorithm.adv_estimator",
            "grpo_passk of EasyR1 is arXiv:2503.19595, ours arXiv:2508.10751; wrote grpo, algorithm=grpo_passk is ours",
        )
    elif name not in known:
        recipe.mark_unsupported("algorithm.adv_estimator", f"there is no '{name}' here; wrote grpo")
    elif name == "grpo":
        recipe.note("algorithm.adv_estimator", f"EasyR1 adds {EPS:g} to the deviation")
    recipe.write("algorithm.advantage", known.get(name, known["grpo"]))
    if name == "gae":
        return
    recipe.mark_ignored("algorithm.lam", "only gae has it")
    if name != "reinforce_plus_plus" or gamma == 1.0:
        recipe.mark_ignored("algorithm.gamma", f"'{name}' does not discount")
    else:
        recipe.mark_unsupported("algorithm.gamma", "rewards are not discounted here")


def critic(recipe: Recipe) -> None:
    """Options of a role that only gae starts."""
    pairs = {
        "critic.value_clip": "worker.critic.cliprange_value",
        "critic.lr": "worker.critic.optim.lr",
        "critic.weight_decay": "worker.critic.optim.weight_decay",
        "critic.max_grad_norm": "worker.critic.max_grad_norm",
        "critic.offload_optimizer": "worker.critic.offload.offload_optimizer",
        "train.critic_warmup_steps": "trainer.critic_warmup",
    }
    pairs["critic.gradient_checkpointing"] = "worker.critic.model.enable_gradient_checkpointing"
    for ours, theirs in pairs.items():
        if recipe.value("algorithm.adv_estimator") == "gae":
            recipe.write(ours, recipe.value(theirs))
            recipe.write("critic.dtype", "bfloat16")
        else:
            recipe.mark_ignored(theirs, "only gae has a critic")


def policy_loss(recipe: Recipe) -> None:
    """`loss_type` with its bounds, and how tokens are averaged."""
    actor = "worker.actor."
    kind, mode = str(recipe.value(f"{actor}loss_type")), str(recipe.value(f"{actor}loss_avg_mode"))
    low, high = float(recipe.value(f"{actor}clip_ratio_low")), float(recipe.value(f"{actor}clip_ratio_high"))
    dual = float(recipe.value(f"{actor}clip_ratio_dual"))
    nodes: dict[str, dict[str, Any]] = {
        "default": {"name": "ppo_clip", "clip_low": low, "clip_high": high, "dual_clip": dual},
        "gspo": {"name": "gspo", "clip_low": low, "clip_high": high},
        "gspo_token": {"name": "gspo_token", "clip_low": low, "clip_high": high},
        "cispo": {"name": "cispo", "ratio_max": 1.0 + high},
        "sapo": {
            "name": "sapo",
            "temperature_pos": float(recipe.value(f"{actor}tau_positive")),
            "temperature_neg": float(recipe.value(f"{actor}tau_negative")),
        },
    }
    if kind not in nodes:
        recipe.mark_unsupported(f"{actor}loss_type", f"there is no '{kind}' here; wrote ppo_clip")
    recipe.write("algorithm.policy_loss", nodes.get(kind, nodes["default"]))
    if kind == "cispo":
        recipe.mark_unsupported(f"{actor}clip_ratio_low", "cispo has no lower bound here, as in the paper's runs")
    if kind in ("gspo", "gspo_token"):
        recipe.mark_unsupported(f"{actor}clip_ratio_dual", f"{kind} has no second bound here")
    for name in ("tau_positive", "tau_negative") if kind != "sapo" else ("clip_ratio_low", "clip_ratio_high"):
        recipe.mark_ignored(f"{actor}{name}", f"loss_type={kind} does not read it")
    if kind in ("cispo", "sapo"):
        recipe.mark_ignored(f"{actor}clip_ratio_dual", f"loss_type={kind} does not read it")
    if mode not in ("token", "seq"):
        recipe.mark_unsupported(f"{actor}loss_avg_mode", f"there is no '{mode}' here; wrote token_mean")
    recipe.write("algorithm.aggregation", {"name": "sequence_mean" if mode == "seq" else "token_mean"})


def kl(recipe: Recipe) -> None:
    """The coefficient and its place; 0 where it is disabled."""
    details = ("use_kl_loss", "kl_penalty", "kl_coef", "kl_type", "kl_horizon", "kl_target")
    if recipe.value("algorithm.disable_kl"):
        recipe.write("algorithm.kl.coef", 0.0)
        for name in details:
            recipe.mark_ignored(f"algorithm.{name}", "disable_kl is true")
        return
    place = "loss" if recipe.value("algorithm.use_kl_loss") else "reward"
    kind, coef = str(recipe.value("algorithm.kl_penalty")), float(recipe.value("algorithm.kl_coef"))
    if kind not in KL:
        recipe.mark_unsupported("algorithm.kl_penalty", f"there is no '{kind}' here; wrote k3")
    if place == "loss" and kind == "kl":
        coef = 0.0
        recipe.mark_unsupported(
            "algorithm.kl_penalty", "'kl' in the loss has a gradient of expectation 0; wrote kl.coef=0"
        )
    else:
        recipe.write("algorithm.kl.name", KL.get(kind, "k3"))
        recipe.write("algorithm.kl.apply_to", place)
    recipe.write("algorithm.kl.coef", coef)
    if str(recipe.value("algorithm.kl_type")) == "adaptive":
        recipe.write("algorithm.kl.target", float(recipe.value("algorithm.kl_target")))
        recipe.write("algorithm.kl.horizon", int(recipe.value("algorithm.kl_horizon")))
    else:
        for name in ("kl_horizon", "kl_target"):
            recipe.mark_ignored(f"algorithm.{name}", "kl_type is not adaptive")


def groups(recipe: Recipe) -> None:
    """Online filtering draws prompts again until enough groups lie within the bounds."""
    details = ("filter_key", "filter_low", "filter_high")
    more, prompts = recipe.value("data.mini_rollout_batch_size"), int(recipe.value("data.rollout_batch_size"))
    if not recipe.value("algorithm.online_filtering"):
        for name in details:
            recipe.mark_ignored(f"algorithm.{name}", "online_filtering is false")
        recipe.mark_ignored("trainer.max_try_make_batch", "online_filtering is false")
        recipe.mark_ignored("data.mini_rollout_batch_size", "without online_filtering a step samples its own prompts")
        return
    if recipe.value("algorithm.adv_estimator") in ("gae", "remax", "reinforce_plus_plus"):
        recipe.mark_unsupported(
            "algorithm.online_filtering", "a group of equal rewards does teach this estimator; it is kept"
        )
        return
    recipe.write("algorithm.groups.zero_variance", "resample")
    recipe.note(
        "algorithm.online_filtering",
        "there a group's mean must lie within filter_low and filter_high; here its rewards must not all be equal, the "
        "same for rewards of 0 and 1",
    )
    if more is not None:
        recipe.write("algorithm.groups.oversample", max(int(more) / prompts, 1.0))
    tries = int(recipe.value("trainer.max_try_make_batch"))
    if tries < 0:
        recipe.note("trainer.max_try_make_batch", "no bound there; 1000 here")
    recipe.write("algorithm.groups.max_tries", 1000 if tries < 0 else max(tries, 1))


def data(recipe: Recipe) -> None:
    """`repo@split` names a split; a plain prompt becomes a user message, after `format_prompt`."""
    recipe.write("data.chat_template", True)
    for theirs, ours, split in (("train_files", "data.train", "train"), ("val_files", "data.eval", "test")):
        named = str(recipe.value(f"data.{theirs}") or "")
        if named:
            name, _, part = named.partition("@")
            recipe.write(ours, trl_parts.source(name, None, part or "train", split))
        elif ours == "data.eval":
            recipe.write(ours, None)
        else:
            recipe.mark_unsupported(f"data.{theirs}", "none is named; wrote nothing: set data.train")
    if recipe.value("data.answer_key") != "answer":
        recipe.write("data.columns", {"answer": str(recipe.value("data.answer_key"))})
    recipe.write("seed", int(recipe.value("data.seed")))
    recipe.note("data.format_prompt", "a path is looked up from the folder where the run starts")


def rewards(recipe: Recipe) -> None:
    """Their functions are called as they call them; of the published example we know what it computes."""
    name = "worker.reward.reward_function"
    name = (
        "worker.reward.score_function"
        if not recipe.given(name) and recipe.value("worker.reward.score_function")
        else name
    )
    function, kwargs = recipe.value(name), recipe.value("worker.reward.reward_function_kwargs") or {}
    if function is None:
        recipe.mark_unsupported(name, "none is named; wrote nothing: set rewards=[{name: my_rewards.py:function}]")
        return
    path, _, attribute = str(function).partition(":")
    if PurePosixPath(path).parts[-2:] in (("reward_function", "math.py"), ("score_function", "math.py")):
        weight = float(kwargs.get("format_weight", 0.1))
        accuracy = {"name": "math_answer", "weight": round(1.0 - weight, 6)}
        recipe.write("rewards", [accuracy, {"name": "regex", "weight": weight, "pattern": BOXED}])
        recipe.note(
            name, "the example's accuracy and format; answers are compared by math-verify here, mathruler there"
        )
        return
    function = f"{path}:{attribute or recipe.value('worker.reward.reward_function_name') or 'compute_score'}"
    entry = {"name": "easyr1_function", "function": function, "options": dict(kwargs)}
    one_by_one = recipe.value("worker.reward.reward_type") == "sequential"
    recipe.write("rewards", [entry | {"reward_type": "sequential"} if one_by_one else entry])
    recipe.note(name, "called as EasyR1 calls it; the file is looked up from the folder where the run starts")


def lora(recipe: Recipe) -> None:
    """Details of adapters count when there are some."""
    actor = "worker.actor.model.lora."
    if not recipe.value(f"{actor}rank"):
        for name in ("alpha", "target_modules"):
            recipe.mark_ignored(f"{actor}{name}", "lora.rank is 0")
        return
    modules = recipe.value(f"{actor}target_modules")
    if isinstance(modules, str) and "," in modules:
        modules = [part.strip() for part in modules.split(",")]
    recipe.write("learner.lora.alpha", float(recipe.value(f"{actor}alpha")))
    recipe.write("learner.lora.target_modules", modules)


def run(recipe: Recipe) -> None:
    """Precision, evaluation, checkpoints, trackers, room in a microbatch."""
    half = str(recipe.value("worker.actor.fsdp.mp_param_dtype"))
    if half not in ("bf16", "bfloat16", "fp32", "float32"):
        recipe.mark_unsupported("worker.actor.fsdp.mp_param_dtype", f"no {half} here; wrote bfloat16")
    recipe.write("learner.dtype", "float32" if half in ("fp32", "float32") else "bfloat16")
    recipe.write("eval.every", max(int(recipe.value("trainer.val_freq")), 0))
    override = recipe.value("worker.rollout.val_override_config")
    if isinstance(override, Mapping) and override:
        recipe.write("eval.num_samples", int(override.get("n", 1)))
        recipe.write("eval.temperature", float(override.get("temperature", 1.0)))
        extra = sorted(set(override) - {"n", "temperature"})
        text = f"; {', '.join(extra)} left out" if extra else ""
        recipe.note("worker.rollout.val_override_config", f"evaluation is greedy too here{text}")
    limit = int(recipe.value("trainer.save_limit"))
    if limit > 0:
        recipe.write("checkpoint.keep", limit)
    else:
        recipe.mark_unsupported(
            "trainer.save_limit", "every checkpoint is kept there; here the last checkpoint.keep are"
        )
    loggers = recipe.value("trainer.logger")
    names = [loggers] if isinstance(loggers, str) else list(loggers)
    project = str(recipe.value("trainer.project_name"))
    known = [name for name in names if name in trl_parts.TRACKERS]
    recipe.write("logging.trackers", [{"name": n, "project": project} if n == "wandb" else n for n in known])
    unknown = sorted(set(names) - set(known) - {"console", "file"})
    if unknown:
        recipe.mark_unsupported(
            "trainer.logger", f"there is no tracker {', '.join(unknown)} here; the others were written"
        )
    trl_parts.room(recipe)
    if "wandb" not in known:
        recipe.mark_ignored("trainer.project_name", "only wandb has it")
    if math.isclose(float(recipe.value("worker.rollout.temperature")), 0.0):
        raise ConfigError("worker.rollout.temperature=0: training samples need a positive temperature")


RULES = (batch, steps, schedule, advantage, critic, policy_loss, kl, groups, data, rewards, lora, run)
