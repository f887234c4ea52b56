"""EasyR1's options that say something only together.

It counts prompts, as we do: `data.rollout_batch_size` of them a step, `worker.actor.global_batch_size` of them an
optimizer update, `worker.rollout.n` responses each.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import PurePosixPath
from typing import Any

from rlsys.commands.importers import trl_parts
from rlsys.commands.importers.draft import Draft
from rlsys.commands.importers.trl_batch import NEEDS_ROWS
from rlsys.errors import ConfigError

KL = {"kl": "k1", "abs": "abs", "mse": "k2", "low_var_kl": "k3"}
BOXED = r"(?s)\A<think>.*</think>.*\\boxed\{.*\}.*\Z"
EPS = 1e-6
"""What EasyR1 adds to a group's standard deviation."""


def batch(draft: Draft) -> None:
    """Raises ConfigError where the updates do not divide the step, as EasyR1 does."""
    prompts, update = int(draft.value("data.rollout_batch_size")), int(draft.value("worker.actor.global_batch_size"))
    if prompts % update:
        raise ConfigError(
            f"worker.actor.global_batch_size={update} does not divide data.rollout_batch_size={prompts}: both count "
            "prompts, and a step is divided into whole updates"
        )
    draft.write("train.prompts_per_step", prompts)
    draft.write("train.minibatches_per_step", prompts // update)


def steps(draft: Draft) -> None:
    """Steps on both sides: `max_steps` wins over `total_epochs`."""
    max_steps, rows = draft.value("trainer.max_steps"), draft.setting.num_rows
    if max_steps is not None:
        draft.write("train.num_steps", int(max_steps))
        draft.moot("trainer.total_epochs", "trainer.max_steps decides")
    elif rows is None:
        draft.refuse("trainer.total_epochs", NEEDS_ROWS.format(key="train.num_steps"))
    else:
        epoch = max(rows // int(draft.value("data.rollout_batch_size")), 1)
        draft.write("train.num_steps", int(draft.value("trainer.total_epochs")) * epoch)


def schedule(draft: Draft) -> None:
    """Warm-up counts steps there, each of which moves the learning rate once, and optimizer updates here."""
    name, floor = (
        str(draft.value("worker.actor.optim.lr_scheduler_type")),
        draft.value("worker.actor.optim.min_lr_ratio"),
    )
    if name not in ("constant", "cosine"):
        draft.refuse("worker.actor.optim.lr_scheduler_type", f"EasyR1 has no '{name}'; wrote constant")
        name = "constant"
    draft.write("learner.lr_schedule", name)
    if name == "cosine" and floor:
        draft.refuse("worker.actor.optim.min_lr_ratio", "cosine ends at 0 here")
    elif floor is not None:
        draft.moot("worker.actor.optim.min_lr_ratio", "it asks for nothing that the schedule does not do")
    fixed, ratio = draft.value("worker.actor.optim.lr_warmup_steps"), draft.value("worker.actor.optim.lr_warmup_ratio")
    a_step = int(draft.written["train.minibatches_per_step"]) * int(draft.value("worker.actor.ppo_epochs"))
    if fixed is not None:
        draft.write("learner.warmup_steps", int(fixed) * a_step)
        draft.moot("worker.actor.optim.lr_warmup_ratio", "lr_warmup_steps decides")
    elif not ratio:
        draft.write("learner.warmup_steps", 0)
    elif "train.num_steps" not in draft.written:
        draft.refuse("worker.actor.optim.lr_warmup_ratio", NEEDS_ROWS.format(key="learner.warmup_steps"))
    else:
        draft.write("learner.warmup_steps", int(float(ratio) * (int(draft.written["train.num_steps"]) * a_step)))


def advantage(draft: Draft) -> None:
    """The estimator by name; gamma and lam are the critic's (and 1 elsewhere)."""
    name = str(draft.value("algorithm.adv_estimator"))
    gamma, lam = float(draft.value("algorithm.gamma")), float(draft.value("algorithm.lam"))
    known: dict[str, dict[str, Any]] = {
        "grpo": {"name": "grpo", "eps": EPS},
        "gae": {"name": "gae", "gamma": gamma, "lam": lam},
        "rloo": {"name": "rloo"},
        "remax": {"name": "remax"},
        "reinforce_plus_plus": {"name": "reinforce_pp"},
    }
    if name == "grpo_passk":
        draft.refuse(
            "algorithm.adv_estimator",
            "grpo_passk of EasyR1 is arXiv:2503.19595, ours arXiv:2508.10751; wrote grpo, algorithm=grpo_passk is ours",
        )
    elif name not in known:
        draft.refuse("algorithm.adv_estimator", f"there is no '{name}' here; wrote grpo")
    elif name == "grpo":
        draft.note("algorithm.adv_estimator", f"EasyR1 adds {EPS:g} to the deviation")
    draft.write("algorithm.advantage", known.get(name, known["grpo"]))
    if name == "gae":
        return
    draft.moot("algorithm.lam", "only gae has it")
    if name != "reinforce_plus_plus" or gamma == 1.0:
        draft.moot("algorithm.gamma", f"'{name}' does not discount")
    else:
        draft.refuse("algorithm.gamma", "rewards are not discounted here")


def critic(draft: Draft) -> None:
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
        if draft.value("algorithm.adv_estimator") == "gae":
            draft.write(ours, draft.value(theirs))
            draft.write("critic.dtype", "bfloat16")
        else:
            draft.moot(theirs, "only gae has a critic")


def policy_loss(draft: Draft) -> None:
    """`loss_type` with its bounds, and how tokens are averaged."""
    actor = "worker.actor."
    kind, mode = str(draft.value(f"{actor}loss_type")), str(draft.value(f"{actor}loss_avg_mode"))
    low, high = float(draft.value(f"{actor}clip_ratio_low")), float(draft.value(f"{actor}clip_ratio_high"))
    dual = float(draft.value(f"{actor}clip_ratio_dual"))
    nodes: dict[str, dict[str, Any]] = {
        "default": {"name": "ppo_clip", "clip_low": low, "clip_high": high, "dual_clip": dual},
        "gspo": {"name": "gspo", "clip_low": low, "clip_high": high},
        "gspo_token": {"name": "gspo_token", "clip_low": low, "clip_high": high},
        "cispo": {"name": "cispo", "ratio_max": 1.0 + high},
        "sapo": {
            "name": "sapo",
            "temperature_pos": float(draft.value(f"{actor}tau_positive")),
            "temperature_neg": float(draft.value(f"{actor}tau_negative")),
        },
    }
    if kind not in nodes:
        draft.refuse(f"{actor}loss_type", f"there is no '{kind}' here; wrote ppo_clip")
    draft.write("algorithm.policy_loss", nodes.get(kind, nodes["default"]))
    if kind == "cispo":
        draft.refuse(f"{actor}clip_ratio_low", "cispo has no lower bound here, as in the paper's runs")
    if kind in ("gspo", "gspo_token"):
        draft.refuse(f"{actor}clip_ratio_dual", f"{kind} has no second bound here")
    for name in ("tau_positive", "tau_negative") if kind != "sapo" else ("clip_ratio_low", "clip_ratio_high"):
        draft.moot(f"{actor}{name}", f"loss_type={kind} does not read it")
    if kind in ("cispo", "sapo"):
        draft.moot(f"{actor}clip_ratio_dual", f"loss_type={kind} does not read it")
    if mode not in ("token", "seq"):
        draft.refuse(f"{actor}loss_avg_mode", f"there is no '{mode}' here; wrote token_mean")
    draft.write("algorithm.aggregation", {"name": "sequence_mean" if mode == "seq" else "token_mean"})


def kl(draft: Draft) -> None:
    """The coefficient and its place; 0 where it is disabled."""
    details = ("use_kl_loss", "kl_penalty", "kl_coef", "kl_type", "kl_horizon", "kl_target")
    if draft.value("algorithm.disable_kl"):
        draft.write("algorithm.kl.coef", 0.0)
        for name in details:
            draft.moot(f"algorithm.{name}", "disable_kl is true")
        return
    place = "loss" if draft.value("algorithm.use_kl_loss") else "reward"
    kind, coef = str(draft.value("algorithm.kl_penalty")), float(draft.value("algorithm.kl_coef"))
    if kind not in KL:
        draft.refuse("algorithm.kl_penalty", f"there is no '{kind}' here; wrote k3")
    if place == "loss" and kind == "kl":
        coef = 0.0
        draft.refuse("algorithm.kl_penalty", "'kl' in the loss has a gradient of expectation 0; wrote kl.coef=0")
    else:
        draft.write("algorithm.kl.name", KL.get(kind, "k3"))
        draft.write("algorithm.kl.apply_to", place)
    draft.write("algorithm.kl.coef", coef)
    if str(draft.value("algorithm.kl_type")) == "adaptive":
        draft.write("algorithm.kl.target", float(draft.value("algorithm.kl_target")))
        draft.write("algorithm.kl.horizon", int(draft.value("algorithm.kl_horizon")))
    else:
        for name in ("kl_horizon", "kl_target"):
            draft.moot(f"algorithm.{name}", "kl_type is not adaptive")


def groups(draft: Draft) -> None:
    """Online filtering draws prompts again until enough groups lie within the bounds."""
    details = ("filter_key", "filter_low", "filter_high")
    more, prompts = draft.value("data.mini_rollout_batch_size"), int(draft.value("data.rollout_batch_size"))
    if not draft.value("algorithm.online_filtering"):
        for name in details:
            draft.moot(f"algorithm.{name}", "online_filtering is false")
        draft.moot("trainer.max_try_make_batch", "online_filtering is false")
        draft.moot("data.mini_rollout_batch_size", "without online_filtering a step samples its own prompts")
        return
    if draft.value("algorithm.adv_estimator") in ("gae", "remax", "reinforce_plus_plus"):
        draft.refuse("algorithm.online_filtering", "a group of equal rewards does teach this estimator; it is kept")
        return
    draft.write("algorithm.groups.zero_variance", "resample")
    draft.note(
        "algorithm.online_filtering",
        "there a group's mean must lie within filter_low and filter_high; here its rewards must not all be equal, the "
        "same for rewards of 0 and 1",
    )
    if more is not None:
        draft.write("algorithm.groups.oversample", max(int(more) / prompts, 1.0))
    tries = int(draft.value("trainer.max_try_make_batch"))
    if tries < 0:
        draft.note("trainer.max_try_make_batch", "no bound there; 1000 here")
    draft.write("algorithm.groups.max_tries", 1000 if tries < 0 else max(tries, 1))


def data(draft: Draft) -> None:
    """`repo@split` names a split; a plain prompt becomes a user message, after `format_prompt`."""
    draft.write("data.chat_template", True)
    for theirs, ours, split in (("train_files", "data.train", "train"), ("val_files", "data.eval", "test")):
        named = str(draft.value(f"data.{theirs}") or "")
        if named:
            name, _, part = named.partition("@")
            draft.write(ours, trl_parts.source(name, None, part or "train", split))
        elif ours == "data.eval":
            draft.write(ours, None)
        else:
            draft.refuse(f"data.{theirs}", "none is named; wrote nothing: set data.train")
    if draft.value("data.answer_key") != "answer":
        draft.write("data.columns", {"answer": str(draft.value("data.answer_key"))})
    draft.write("seed", int(draft.value("data.seed")))
    draft.note("data.format_prompt", "a path is looked up from the folder where the run starts")


def rewards(draft: Draft) -> None:
    """Their functions are called as they call them; of the published example we know what it computes."""
    name = "worker.reward.reward_function"
    name = (
        "worker.reward.score_function"
        if not draft.given(name) and draft.value("worker.reward.score_function")
        else name
    )
    function, kwargs = draft.value(name), draft.value("worker.reward.reward_function_kwargs") or {}
    if function is None:
        draft.refuse(name, "none is named; wrote nothing: set rewards=[{name: my_rewards.py:function}]")
        return
    path, _, attribute = str(function).partition(":")
    if PurePosixPath(path).parts[-2:] in (("reward_function", "math.py"), ("score_function", "math.py")):
        weight = float(kwargs.get("format_weight", 0.1))
        accuracy = {"name": "math_answer", "weight": round(1.0 - weight, 6)}
        draft.write("rewards", [accuracy, {"name": "regex", "weight": weight, "pattern": BOXED}])
        draft.note(name, "the example's accuracy and format; answers are compared by math-verify here, mathruler there")
        return
    function = f"{path}:{attribute or draft.value('worker.reward.reward_function_name') or 'compute_score'}"
    entry = {"name": "easyr1_function", "function": function, "options": dict(kwargs)}
    one_by_one = draft.value("worker.reward.reward_type") == "sequential"
    draft.write("rewards", [entry | {"reward_type": "sequential"} if one_by_one else entry])
    draft.note(name, "called as EasyR1 calls it; the file is looked up from the folder where the run starts")


def lora(draft: Draft) -> None:
    """Details of adapters count when there are some."""
    actor = "worker.actor.model.lora."
    if not draft.value(f"{actor}rank"):
        for name in ("alpha", "target_modules"):
            draft.moot(f"{actor}{name}", "lora.rank is 0")
        return
    modules = draft.value(f"{actor}target_modules")
    if isinstance(modules, str) and "," in modules:
        modules = [part.strip() for part in modules.split(",")]
    draft.write("learner.lora.alpha", float(draft.value(f"{actor}alpha")))
    draft.write("learner.lora.target_modules", modules)


def run(draft: Draft) -> None:
    """Precision, evaluation, checkpoints, trackers, room in a microbatch."""
    half = str(draft.value("worker.actor.fsdp.mp_param_dtype"))
    if half not in ("bf16", "bfloat16", "fp32", "float32"):
        draft.refuse("worker.actor.fsdp.mp_param_dtype", f"no {half} here; wrote bfloat16")
    draft.write("learner.dtype", "float32" if half in ("fp32", "float32") else "bfloat16")
    draft.write("eval.every", max(int(draft.value("trainer.val_freq")), 0))
    override = draft.value("worker.rollout.val_override_config")
    if isinstance(override, Mapping) and override:
        draft.write("eval.num_samples", int(override.get("n", 1)))
        draft.write("eval.temperature", float(override.get("temperature", 1.0)))
        extra = sorted(set(override) - {"n", "temperature"})
        text = f"; {', '.join(extra)} left out" if extra else ""
        draft.note("worker.rollout.val_override_config", f"evaluation is greedy too here{text}")
    limit = int(draft.value("trainer.save_limit"))
    if limit > 0:
        draft.write("checkpoint.keep", limit)
    else:
        draft.refuse("trainer.save_limit", "every checkpoint is kept there; here the last checkpoint.keep are")
    loggers = draft.value("trainer.logger")
    names = [loggers] if isinstance(loggers, str) else list(loggers)
    project = str(draft.value("trainer.project_name"))
    known = [name for name in names if name in trl_parts.TRACKERS]
    draft.write("logging.trackers", [{"name": n, "project": project} if n == "wandb" else n for n in known])
    unknown = sorted(set(names) - set(known) - {"console", "file"})
    if unknown:
        draft.refuse("trainer.logger", f"there is no tracker {', '.join(unknown)} here; the others were written")
    trl_parts.room(draft)
    if "wandb" not in known:
        draft.moot("trainer.project_name", "only wandb has it")
    if math.isclose(float(draft.value("worker.rollout.temperature")), 0.0):
        raise ConfigError("worker.rollout.temperature=0: training samples need a positive temperature")


RULES = (batch, steps, schedule, advantage, critic, policy_loss, kl, groups, data, rewards, lora, run)
