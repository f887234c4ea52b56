"""OpenRLHF's flags that say something only together.

It counts prompts to sample (`rollout.batch_size`) and samples to train on (`train.batch_size`): an update of the
latter is a part of a step.
"""

from __future__ import annotations

import math
from typing import Any

from rlsys.commands.importers.dialects import trl_parts
from rlsys.commands.importers.dialects.trl_batch import NEAREST_SCHEDULE, NEEDS_ROWS, SCHEDULES, updates_a_step
from rlsys.commands.importers.recipe import Recipe
from rlsys.errors import ConfigError

ESTIMATORS: dict[str, dict[str, Any]] = {
    "gae": {"name": "gae"},
    "reinforce": {"name": "reinforce_pp"},
    "reinforce_baseline": {"name": "reinforce_pp_baseline"},
    "rloo": {"name": "rloo"},
    "group_norm": {"name": "grpo", "eps": 1e-9},  # what OpenRLHF adds to the deviation
    "dr_grpo": {"name": "dr_grpo"},
}
CORRECTIONS = {"tis": ("token", "clip"), "icepop": ("token", "mask"), "seq-mask-tis": ("seq", "mask")}
NO_CRITIC = "only gae has a critic"
IS = "algo.advantage.is_correction_"


def batch(recipe: Recipe) -> None:
    """Raises ConfigError where an update would divide a prompt's samples or a step unevenly."""
    prompts, samples = int(recipe.value("rollout.batch_size")), int(recipe.value("rollout.n_samples_per_prompt"))
    update = int(recipe.value("train.batch_size"))
    if (prompts * samples) % update:
        raise ConfigError(
            f"train.batch_size={update} does not divide the {prompts * samples} samples of a rollout "
            f"(rollout.batch_size={prompts} prompts * rollout.n_samples_per_prompt={samples})"
        )
    minibatches = prompts * samples // update
    if minibatches > prompts:
        recipe.mark_unsupported(
            "train.batch_size",
            f"{minibatches} updates a step of {prompts} prompts: a prompt's samples stay together here; wrote "
            f"train.minibatches_per_step={prompts}",
        )
    recipe.write("train.prompts_per_step", prompts)
    recipe.write("train.minibatches_per_step", min(minibatches, prompts))


def steps(recipe: Recipe) -> None:
    """`num_episodes` times over the data, or its first `max_samples` rows."""
    rows, limit = recipe.size.num_rows, recipe.value("data.max_samples")
    if rows is None and limit is not None:
        recipe.note("data.max_samples", "taken for the number of rows; data.options cuts the data itself")
    known = min([int(n) for n in (rows, limit) if n is not None], default=None)
    if known is None:
        recipe.mark_unsupported("train.num_episodes", NEEDS_ROWS.format(key="train.num_steps"))
        return
    episode = max(known // int(recipe.value("rollout.batch_size")), 1)
    recipe.write("train.num_steps", int(recipe.value("train.num_episodes")) * episode)


def schedule(recipe: Recipe) -> None:
    """The actor's learning rate and the critic's."""
    _course(recipe, "actor", "learner")
    if _has_critic(recipe):
        _course(recipe, "critic", "critic")
    else:
        for name in ("lr_scheduler", "min_lr_ratio", "lr_warmup_ratio"):
            recipe.mark_ignored(f"critic.{name}", NO_CRITIC)


def _course(recipe: Recipe, theirs: str, ours: str) -> None:
    """Schedule and warm-up of one role; the warm-up is a ratio of all updates."""
    name, floor = str(recipe.value(f"{theirs}.lr_scheduler")), recipe.value(f"{theirs}.min_lr_ratio")
    instead = name if name in SCHEDULES else NEAREST_SCHEDULE.get(name, "constant")
    recipe.write(f"{ours}.lr_schedule", "constant" if instead == "constant_with_warmup" else instead)
    if name not in SCHEDULES:
        ends = f": it ends at 0, theirs at {floor} of its top" if "min_lr" in name else ""
        recipe.mark_unsupported(
            f"{theirs}.lr_scheduler", f"there is no '{name}' here; wrote {ours}.lr_schedule={instead}{ends}"
        )
    recipe.mark_ignored(f"{theirs}.min_lr_ratio", "schedules end at 0 here")
    ratio = float(recipe.value(f"{theirs}.lr_warmup_ratio") or 0)
    if ratio == 0:
        recipe.write(f"{ours}.warmup_steps", 0)
    elif "train.num_steps" not in recipe.written:
        recipe.mark_unsupported(f"{theirs}.lr_warmup_ratio", NEEDS_ROWS.format(key=f"{ours}.warmup_steps"))
    else:
        updates = int(recipe.written["train.num_steps"]) * updates_a_step(recipe)
        recipe.write(f"{ours}.warmup_steps", math.ceil(ratio * updates))


def _has_critic(recipe: Recipe) -> bool:
    return bool(recipe.value("algo.advantage.estimator") == "gae")


def advantage(recipe: Recipe) -> None:
    """The estimator by name; gamma and lambd are the critic's."""
    name, gamma = str(recipe.value("algo.advantage.estimator")), float(recipe.value("algo.advantage.gamma"))
    if name not in ESTIMATORS:
        recipe.mark_unsupported("algo.advantage.estimator", f"there is no '{name}' here; wrote grpo")
    node = dict(ESTIMATORS.get(name, {"name": "grpo"}))
    if name == "gae":
        node |= {"gamma": gamma, "lam": float(recipe.value("algo.advantage.lambd"))}
    elif name == "reinforce" and gamma != 1.0:
        recipe.mark_unsupported("algo.advantage.gamma", "rewards are not discounted here")
    else:
        recipe.mark_ignored("algo.advantage.gamma", f"'{name}' does not discount")
    if name != "gae":
        recipe.mark_ignored("algo.advantage.lambd", "only gae has it")
    if name not in ("gae", "reinforce", "reinforce_baseline"):
        recipe.unsupported.pop("algo.advantage.no_std_norm", None)
        recipe.mark_ignored("algo.advantage.no_std_norm", f"'{name}' is not normalised over the batch")
    recipe.write("algorithm.advantage", node)


def critic(recipe: Recipe) -> None:
    """Options of a role that only gae starts; what DeepSpeed is told holds for both."""
    pairs = {
        "critic.value_clip": "critic.value_clip",
        "critic.lr": "critic.adam.lr",
        "critic.betas": "critic.adam.betas",
        "critic.eps": "critic.adam.eps",
        "critic.weight_decay": "critic.adam.weight_decay",
        "critic.max_grad_norm": "critic.max_norm",
    }
    if _has_critic(recipe):
        shared = {"zero_stage": "ds.zero_stage", "offload_optimizer": "ds.adam_offload"}
        shared["gradient_checkpointing"] = "actor.gradient_checkpointing_enable"
        for ours, theirs in (pairs | {f"critic.{ours}": theirs for ours, theirs in shared.items()}).items():
            recipe.write(ours, recipe.value(theirs))
        recipe.write("critic.dtype", "bfloat16")
        recipe.write("train.critic_warmup_steps", max(int(recipe.value("critic.freezing_steps")), 0))
        return
    for theirs in (*pairs.values(), "critic.freezing_steps", "critic.model_name_or_path"):
        recipe.unsupported.pop(theirs, None)
        recipe.mark_ignored(theirs, NO_CRITIC)


def policy_loss(recipe: Recipe) -> None:
    """The clipped loss by token or by response (gspo)."""
    low = high = float(recipe.value("actor.eps_clip"))
    both = recipe.value("actor.eps_clip_low_high")
    if both is not None:
        low, high = (float(bound) for bound in both)
        recipe.mark_ignored("actor.eps_clip", "eps_clip_low_high decides")
    kind, dual = str(recipe.value("actor.policy_loss_type")), recipe.value("actor.dual_clip")
    mode = str(recipe.value("actor.loss_agg_mode"))
    is_gspo = kind == "gspo"
    if kind not in ("ppo", "gspo"):
        recipe.mark_unsupported("actor.policy_loss_type", f"there is no '{kind}' here; wrote ppo_clip")
    node: dict[str, Any] = {"name": "gspo" if is_gspo else "ppo_clip", "clip_low": low, "clip_high": high}
    if dual is not None and is_gspo:
        recipe.mark_unsupported("actor.dual_clip", "gspo has no second bound here")
    elif dual is not None:
        node["dual_clip"] = float(dual)
    if is_gspo:
        recipe.mark_ignored("actor.loss_agg_mode", "gspo is a mean over responses")
    by_sequence = is_gspo or mode == "seq-mean-token-mean"
    if mode not in ("token-mean", "seq-mean-token-mean"):
        recipe.mark_unsupported("actor.loss_agg_mode", f"there is no '{mode}' here; wrote token_mean")
    recipe.write("algorithm.policy_loss", node)
    recipe.write("algorithm.aggregation", {"name": "sequence_mean" if by_sequence else "token_mean"})


def corrections(recipe: Recipe) -> None:
    """What allows for engine and learner not agreeing, in the words of 0.10 (type) or 0.11 (level, mode, gating)."""
    level, mode = str(recipe.value(f"{IS}level")), str(recipe.value(f"{IS}mode"))
    if recipe.value(f"{IS}enable"):
        kind = str(recipe.value(f"{IS}type") or "tis")
        if kind not in CORRECTIONS:
            raise ConfigError(f"{IS}type={kind}: OpenRLHF has {', '.join(CORRECTIONS)}")
        level, mode = CORRECTIONS[kind]
    bounds = recipe.value(f"{IS}threshold")
    bounds = [bounds] if isinstance(bounds, int | float) else list(bounds)
    low, high = (0.0, float(bounds[0])) if len(bounds) == 1 else (float(bounds[0]), float(bounds[1]))
    details = [f"{IS}{name}" for name in ("type", "mode", "gating", "threshold")]
    found: list[dict[str, Any]] = []
    if level == "off":
        for name in details:
            recipe.mark_ignored(name, "no correction is asked for")
    elif recipe.value("actor.policy_loss_type") == "gspo":
        recipe.write("train.old_logprobs", "engine")
        for name in details:
            recipe.mark_ignored(
                name, "with gspo the response's ratio is taken to the engine: train.old_logprobs=engine"
            )
    elif recipe.value(f"{IS}gating") != "ratio":
        recipe.mark_unsupported(f"{IS}gating", "masks look at the ratio here; wrote no correction")
    elif level == "seq":  # the sequence decides by its geometric mean, each token weighs by itself
        gate = {"name": "mask", "level": "geometric", "low": low, "high": high, "weigh": False}
        found = [gate, {"name": "decoupled"}]
    else:
        name = "truncate" if mode == "clip" else "mask"
        found = [{"name": name, "level": "token", "low": low, "high": high}]
    recipe.write("algorithm.corrections", found or None)


def kl(recipe: Recipe) -> None:
    """Coefficient, estimator, place; 0 starts no reference."""
    coef, kind = float(recipe.value("algo.kl.init_coef")), str(recipe.value("algo.kl.estimator"))
    details = ("estimator", "use_loss", "unbiased_gradient", "target", "horizon")
    unbiased = bool(recipe.value("algo.kl.unbiased_gradient"))
    in_loss = bool(recipe.value("algo.kl.use_loss"))
    if in_loss and kind == "k1" and not unbiased:
        coef = 0.0
        recipe.mark_unsupported("algo.kl.estimator", "k1 in the loss has a gradient of expectation 0; wrote kl.coef=0")
    recipe.write("algorithm.kl.coef", coef)
    if coef == 0:
        for name in details:
            recipe.mark_ignored(f"algo.kl.{name}", "there is no KL")
        return
    recipe.write("algorithm.kl.name", kind)
    recipe.write("algorithm.kl.apply_to", "loss" if in_loss else "reward")
    if not in_loss:
        recipe.mark_ignored("algo.kl.unbiased_gradient", "the KL is in the reward")
        if recipe.value("algo.advantage.estimator") != "gae":
            recipe.note("algo.kl.use_loss", "in the reward it is charged by token there, by response here")
    else:
        recipe.write("algorithm.kl.unbiased", unbiased)
    if recipe.value("algo.kl.target") is None:
        recipe.mark_ignored("algo.kl.horizon", "algo.kl.target is not set")
    else:
        recipe.write("algorithm.kl.target", float(recipe.value("algo.kl.target")))
        recipe.write("algorithm.kl.horizon", int(recipe.value("algo.kl.horizon")))


def groups(recipe: Recipe) -> None:
    """Dynamic filtering draws prompts again until enough groups lie within the range."""
    more, prompts = recipe.value("rollout.vllm_generate_batch_size"), int(recipe.value("rollout.batch_size"))
    if not recipe.value("algo.dynamic_filtering_enable"):
        recipe.mark_ignored("algo.dynamic_filtering_range", "dynamic filtering is off")
        recipe.mark_ignored(
            "rollout.vllm_generate_batch_size", "without dynamic filtering a step samples its own prompts"
        )
        return
    if recipe.value("algo.advantage.estimator") in ("gae", "reinforce"):
        recipe.mark_unsupported(
            "algo.dynamic_filtering_enable", "a group of equal rewards does teach this estimator; it is kept"
        )
        return
    recipe.write("algorithm.groups.zero_variance", "resample")
    recipe.note(
        "algo.dynamic_filtering_enable",
        "there a group's mean must lie within the range; here its rewards must not all be equal, the same for rewards "
        "of 0 and 1",
    )
    if more is not None:
        recipe.write("algorithm.groups.oversample", max(int(more) / prompts, 1.0))


def lengths(recipe: Recipe) -> None:
    """`max_len` bounds prompt and response together."""
    whole, response = int(recipe.value("data.max_len")), recipe.value("rollout.max_new_tokens")
    if response is None:
        response = whole // 2
        recipe.note("data.max_len", "there a response may fill what its prompt leaves; here half is for either")
    if int(response) >= whole and recipe.given("data.max_len"):
        raise ConfigError(f"rollout.max_new_tokens={response} leaves no room for a prompt within data.max_len={whole}")
    recipe.write("data.max_prompt_tokens", max(whole - int(response), 1))
    recipe.write("data.overlong", "filter")
    recipe.note("data.max_len", "longer prompts are cut there, left out here (data.overlong)")
    recipe.write("rollout.max_response_tokens", int(response))
    trl_parts.room(recipe)
    if recipe.value("train.dynamic_batch_enable") and recipe.given("train.max_tokens_per_gpu"):
        recipe.write("learner.microbatch_tokens", max(int(recipe.value("train.max_tokens_per_gpu")), whole))
    else:
        recipe.mark_ignored("train.max_tokens_per_gpu", "train.dynamic_batch_enable is not set")


def rewards(recipe: Recipe) -> None:
    """A reward model, a server, or a Python file; and a penalty for length."""
    remote, model = recipe.value("reward.remote_url"), recipe.value("reward.model_name_or_path")
    found: list[dict[str, Any]] = []
    for url in str(remote).split(",") if remote else []:
        if url.endswith(".py"):
            found.append({"name": "openrlhf_function", "function": f"{url}:reward_func"})
            recipe.note(
                "reward.remote_url",
                "called as OpenRLHF calls it, here without the chat template's tokens in queries and prompts; the file "
                "is looked up from the folder where the run starts",
            )
        else:
            found.append({"name": "http", "url": url, "protocol": "openrlhf"})
            recipe.note(
                "reward.remote_url",
                "asked in OpenRLHF's words: query, prompts and labels, here without the chat template's tokens; of the "
                "answer its rewards are read alone",
            )
    for path in str(model).split(",") if model and not remote else []:
        found.append({"name": "reward_model", "model": path})
    if model and remote:
        recipe.mark_ignored("reward.model_name_or_path", "reward.remote_url decides")
    buffer = recipe.value("reward.overlong_buffer_len")
    if not found:
        recipe.mark_unsupported("reward.model_name_or_path", "none is named; wrote nothing: set rewards=[{name: ...}]")
        return
    if buffer is not None:
        bound = {
            "max_response_tokens": int(recipe.written["rollout.max_response_tokens"]),
            "buffer_tokens": int(buffer),
        }
        weight = float(recipe.value("reward.overlong_penalty_factor"))
        found.append({"name": "soft_overlong_punishment", "weight": weight, **bound})
    else:
        recipe.mark_ignored("reward.overlong_penalty_factor", "reward.overlong_buffer_len is not set")
    recipe.write("rewards", found)


def data(recipe: Recipe) -> None:
    """Several datasets by commas, with the shares of prompts drawn from each."""
    names = [name for name in str(recipe.value("data.prompt_dataset") or "").split(",") if name]
    shares = str(recipe.value("data.prompt_probs") or "").split(",")
    split = recipe.value("data.prompt_split")
    if not names:
        recipe.mark_unsupported("data.prompt_dataset", "none is named; wrote nothing: set data.train")
        return
    sources = [trl_parts.source(name, None, split, "train") for name in names]
    if len(names) > 1 and len(shares) == len(names):
        whole = [source if isinstance(source, dict) else {"name": source} for source in sources]
        recipe.write("data.train", [node | {"weight": float(share)} for node, share in zip(whole, shares, strict=True)])
    else:
        recipe.write("data.train", sources if len(sources) > 1 else sources[0])
    label = recipe.value("data.label_key")
    if label is not None and label != "label":
        recipe.write("data.columns", {"label": str(label)})
    template = recipe.value("data.input_template")
    if template is not None:
        recipe.write("data.prompt_template", str(template).replace("{}", "{{ content }}"))
    evaluation(recipe)


def evaluation(recipe: Recipe) -> None:
    """Held-out data is sampled `n_samples_per_prompt` times."""
    held_out, interval = recipe.value("eval.dataset"), int(recipe.value("eval.steps"))
    names = [
        trl_parts.source(name, None, recipe.value("eval.split"), "test") for name in str(held_out or "").split(",")
    ]
    recipe.write("data.eval", None if not held_out else names if len(names) > 1 else names[0])
    recipe.write("eval.every", max(interval, 0) if held_out else 0)
    if not held_out or interval <= 0:
        for name in ("temperature", "n_samples_per_prompt", "split"):
            recipe.mark_ignored(f"eval.{name}", "nothing is evaluated during training")
        return
    recipe.write("eval.num_samples", int(recipe.value("eval.n_samples_per_prompt")))
    recipe.write("eval.temperature", float(recipe.value("eval.temperature")))
    recipe.note("eval.n_samples_per_prompt", "beside a greedy response")


def run(recipe: Recipe) -> None:
    """Precision, adapters, sampling ahead, trackers."""
    if recipe.value("ds.param_dtype") != "bf16":
        recipe.mark_unsupported("ds.param_dtype", f"no {recipe.value('ds.param_dtype')} here; wrote bfloat16")
    recipe.write("learner.dtype", "bfloat16")
    if recipe.value("ds.lora.rank"):
        recipe.write("learner.lora.alpha", float(recipe.value("ds.lora.alpha")))
        recipe.write("learner.lora.dropout", float(recipe.value("ds.lora.dropout")))
        recipe.write("learner.lora.target_modules", recipe.value("ds.lora.target_modules"))
        recipe.write("learner.lora.quantize_base", "nf4" if recipe.value("ds.load_in_4bit") else None)
    else:
        for name in ("alpha", "dropout", "target_modules"):
            recipe.mark_ignored(f"ds.lora.{name}", "ds.lora.rank is 0")
        if recipe.value("ds.load_in_4bit"):
            recipe.mark_unsupported("ds.load_in_4bit", "a quantized policy is trained by adapters: set ds.lora.rank")
    if recipe.value("train.async_enable"):
        recipe.write("train.max_staleness", int(recipe.value("train.async_queue_size")))
        recipe.note("train.async_queue_size", "there batches wait in a queue; here it is a hard bound on their age")
    else:
        recipe.mark_ignored("train.async_queue_size", "train.async_enable is false")
    trackers: list[Any] = ["tensorboard"] if recipe.value("logger.tensorboard_dir") else []
    if not trackers:
        recipe.note("logger.tensorboard_dir", "unset, nothing is written for TensorBoard")
    if recipe.value("logger.wandb.key"):
        pairs = (("project", "logger.wandb.project"), ("entity", "logger.wandb.org"))
        options = {ours: recipe.value(theirs) for ours, theirs in pairs if recipe.value(theirs)}
        trackers.append({"name": "wandb", **options})
        recipe.note("logger.wandb.key", "not written: W&B reads WANDB_API_KEY")
    else:
        for name in ("project", "org"):
            recipe.mark_ignored(f"logger.wandb.{name}", "logger.wandb.key is not set")
    recipe.write("logging.trackers", trackers)


RULES = (
    batch, steps, schedule, advantage, critic, policy_loss, corrections, kl, groups, lengths, rewards, data, run,
)  # fmt: skip
