"""OpenRLHF's flags that say something only together.

It counts prompts to sample (`rollout.batch_size`) and samples to train on (`train.batch_size`): an update of the
latter is a part of a step.
"""

from __future__ import annotations

import math
from typing import Any

from rlsys.commands.importers import trl_parts
from rlsys.commands.importers.draft import Draft
from rlsys.commands.importers.trl_batch import NEAREST_SCHEDULE, NEEDS_ROWS, SCHEDULES, updates_a_step
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


def batch(draft: Draft) -> None:
    """Raises ConfigError where an update would divide a prompt's samples or a step unevenly."""
    prompts, samples = int(draft.value("rollout.batch_size")), int(draft.value("rollout.n_samples_per_prompt"))
    update = int(draft.value("train.batch_size"))
    if (prompts * samples) % update:
        raise ConfigError(
            f"train.batch_size={update} does not divide the {prompts * samples} samples of a rollout "
            f"(rollout.batch_size={prompts} prompts * rollout.n_samples_per_prompt={samples})"
        )
    minibatches = prompts * samples // update
    if minibatches > prompts:
        draft.refuse(
            "train.batch_size",
            f"{minibatches} updates a step of {prompts} prompts: a prompt's samples stay together here; wrote "
            f"train.minibatches_per_step={prompts}",
        )
    draft.write("train.prompts_per_step", prompts)
    draft.write("train.minibatches_per_step", min(minibatches, prompts))


def steps(draft: Draft) -> None:
    """`num_episodes` times over the data, or its first `max_samples` rows."""
    rows, limit = draft.setting.num_rows, draft.value("data.max_samples")
    if rows is None and limit is not None:
        draft.note("data.max_samples", "taken for the number of rows; data.options cuts the data itself")
    known = min([int(n) for n in (rows, limit) if n is not None], default=None)
    if known is None:
        draft.refuse("train.num_episodes", NEEDS_ROWS.format(key="train.num_steps"))
        return
    episode = max(known // int(draft.value("rollout.batch_size")), 1)
    draft.write("train.num_steps", int(draft.value("train.num_episodes")) * episode)


def schedule(draft: Draft) -> None:
    """The actor's learning rate and the critic's."""
    _course(draft, "actor", "learner")
    if _has_critic(draft):
        _course(draft, "critic", "critic")
    else:
        for name in ("lr_scheduler", "min_lr_ratio", "lr_warmup_ratio"):
            draft.moot(f"critic.{name}", NO_CRITIC)


def _course(draft: Draft, theirs: str, ours: str) -> None:
    """Schedule and warm-up of one role; the warm-up is a ratio of all updates."""
    name, floor = str(draft.value(f"{theirs}.lr_scheduler")), draft.value(f"{theirs}.min_lr_ratio")
    instead = name if name in SCHEDULES else NEAREST_SCHEDULE.get(name, "constant")
    draft.write(f"{ours}.lr_schedule", "constant" if instead == "constant_with_warmup" else instead)
    if name not in SCHEDULES:
        ends = f": it ends at 0, theirs at {floor} of its top" if "min_lr" in name else ""
        draft.refuse(f"{theirs}.lr_scheduler", f"there is no '{name}' here; wrote {ours}.lr_schedule={instead}{ends}")
    draft.moot(f"{theirs}.min_lr_ratio", "schedules end at 0 here")
    ratio = float(draft.value(f"{theirs}.lr_warmup_ratio") or 0)
    if ratio == 0:
        draft.write(f"{ours}.warmup_steps", 0)
    elif "train.num_steps" not in draft.written:
        draft.refuse(f"{theirs}.lr_warmup_ratio", NEEDS_ROWS.format(key=f"{ours}.warmup_steps"))
    else:
        updates = int(draft.written["train.num_steps"]) * updates_a_step(draft)
        draft.write(f"{ours}.warmup_steps", math.ceil(ratio * updates))


def _has_critic(draft: Draft) -> bool:
    return bool(draft.value("algo.advantage.estimator") == "gae")


def advantage(draft: Draft) -> None:
    """The estimator by name; gamma and lambd are the critic's."""
    name, gamma = str(draft.value("algo.advantage.estimator")), float(draft.value("algo.advantage.gamma"))
    if name not in ESTIMATORS:
        draft.refuse("algo.advantage.estimator", f"there is no '{name}' here; wrote grpo")
    node = dict(ESTIMATORS.get(name, {"name": "grpo"}))
    if name == "gae":
        node |= {"gamma": gamma, "lam": float(draft.value("algo.advantage.lambd"))}
    elif name == "reinforce" and gamma != 1.0:
        draft.refuse("algo.advantage.gamma", "rewards are not discounted here")
    else:
        draft.moot("algo.advantage.gamma", f"'{name}' does not discount")
    if name != "gae":
        draft.moot("algo.advantage.lambd", "only gae has it")
    if name not in ("gae", "reinforce", "reinforce_baseline"):
        draft.refusals.pop("algo.advantage.no_std_norm", None)
        draft.moot("algo.advantage.no_std_norm", f"'{name}' is not normalised over the batch")
    draft.write("algorithm.advantage", node)


def critic(draft: Draft) -> None:
    """Options of a role that only gae starts; what DeepSpeed is told holds for both."""
    pairs = {
        "critic.value_clip": "critic.value_clip",
        "critic.lr": "critic.adam.lr",
        "critic.betas": "critic.adam.betas",
        "critic.eps": "critic.adam.eps",
        "critic.weight_decay": "critic.adam.weight_decay",
        "critic.max_grad_norm": "critic.max_norm",
    }
    if _has_critic(draft):
        shared = {"zero_stage": "ds.zero_stage", "offload_optimizer": "ds.adam_offload"}
        shared["gradient_checkpointing"] = "actor.gradient_checkpointing_enable"
        for ours, theirs in (pairs | {f"critic.{ours}": theirs for ours, theirs in shared.items()}).items():
            draft.write(ours, draft.value(theirs))
        draft.write("critic.dtype", "bfloat16")
        draft.write("train.critic_warmup_steps", max(int(draft.value("critic.freezing_steps")), 0))
        return
    for theirs in (*pairs.values(), "critic.freezing_steps", "critic.model_name_or_path"):
        draft.refusals.pop(theirs, None)
        draft.moot(theirs, NO_CRITIC)


def policy_loss(draft: Draft) -> None:
    """The clipped loss by token or by response (gspo)."""
    low = high = float(draft.value("actor.eps_clip"))
    both = draft.value("actor.eps_clip_low_high")
    if both is not None:
        low, high = (float(bound) for bound in both)
        draft.moot("actor.eps_clip", "eps_clip_low_high decides")
    kind, dual = str(draft.value("actor.policy_loss_type")), draft.value("actor.dual_clip")
    mode = str(draft.value("actor.loss_agg_mode"))
    is_gspo = kind == "gspo"
    if kind not in ("ppo", "gspo"):
        draft.refuse("actor.policy_loss_type", f"there is no '{kind}' here; wrote ppo_clip")
    node: dict[str, Any] = {"name": "gspo" if is_gspo else "ppo_clip", "clip_low": low, "clip_high": high}
    if dual is not None and is_gspo:
        draft.refuse("actor.dual_clip", "gspo has no second bound here")
    elif dual is not None:
        node["dual_clip"] = float(dual)
    if is_gspo:
        draft.moot("actor.loss_agg_mode", "gspo is a mean over responses")
    by_sequence = is_gspo or mode == "seq-mean-token-mean"
    if mode not in ("token-mean", "seq-mean-token-mean"):
        draft.refuse("actor.loss_agg_mode", f"there is no '{mode}' here; wrote token_mean")
    draft.write("algorithm.policy_loss", node)
    draft.write("algorithm.aggregation", {"name": "sequence_mean" if by_sequence else "token_mean"})


def corrections(draft: Draft) -> None:
    """What allows for engine and learner not agreeing, in the words of 0.10 (type) or 0.11 (level, mode, gating)."""
    level, mode = str(draft.value(f"{IS}level")), str(draft.value(f"{IS}mode"))
    if draft.value(f"{IS}enable"):
        kind = str(draft.value(f"{IS}type") or "tis")
        if kind not in CORRECTIONS:
            raise ConfigError(f"{IS}type={kind}: OpenRLHF has {', '.join(CORRECTIONS)}")
        level, mode = CORRECTIONS[kind]
    bounds = draft.value(f"{IS}threshold")
    bounds = [bounds] if isinstance(bounds, int | float) else list(bounds)
    low, high = (0.0, float(bounds[0])) if len(bounds) == 1 else (float(bounds[0]), float(bounds[1]))
    details = [f"{IS}{name}" for name in ("type", "mode", "gating", "threshold")]
    found: list[dict[str, Any]] = []
    if level == "off":
        for name in details:
            draft.moot(name, "no correction is asked for")
    elif draft.value("actor.policy_loss_type") == "gspo":
        draft.write("train.old_logprobs", "engine")
        for name in details:
            draft.moot(name, "with gspo the response's ratio is taken to the engine: train.old_logprobs=engine")
    elif draft.value(f"{IS}gating") != "ratio":
        draft.refuse(f"{IS}gating", "masks look at the ratio here; wrote no correction")
    elif level == "seq":  # the sequence decides by its geometric mean, each token weighs by itself
        gate = {"name": "mask", "level": "geometric", "low": low, "high": high, "weigh": False}
        found = [gate, {"name": "decoupled"}]
    else:
        name = "truncate" if mode == "clip" else "mask"
        found = [{"name": name, "level": "token", "low": low, "high": high}]
    draft.write("algorithm.corrections", found or None)


def kl(draft: Draft) -> None:
    """Coefficient, estimator, place; 0 starts no reference."""
    coef, kind = float(draft.value("algo.kl.init_coef")), str(draft.value("algo.kl.estimator"))
    details = ("estimator", "use_loss", "unbiased_gradient", "target", "horizon")
    unbiased = bool(draft.value("algo.kl.unbiased_gradient"))
    in_loss = bool(draft.value("algo.kl.use_loss"))
    if in_loss and kind == "k1" and not unbiased:
        coef = 0.0
        draft.refuse("algo.kl.estimator", "k1 in the loss has a gradient of expectation 0; wrote kl.coef=0")
    draft.write("algorithm.kl.coef", coef)
    if coef == 0:
        for name in details:
            draft.moot(f"algo.kl.{name}", "there is no KL")
        return
    draft.write("algorithm.kl.name", kind)
    draft.write("algorithm.kl.apply_to", "loss" if in_loss else "reward")
    if not in_loss:
        draft.moot("algo.kl.unbiased_gradient", "the KL is in the reward")
        if draft.value("algo.advantage.estimator") != "gae":
            draft.note("algo.kl.use_loss", "in the reward it is charged by token there, by response here")
    else:
        draft.write("algorithm.kl.unbiased", unbiased)
    if draft.value("algo.kl.target") is None:
        draft.moot("algo.kl.horizon", "algo.kl.target is not set")
    else:
        draft.write("algorithm.kl.target", float(draft.value("algo.kl.target")))
        draft.write("algorithm.kl.horizon", int(draft.value("algo.kl.horizon")))


def groups(draft: Draft) -> None:
    """Dynamic filtering draws prompts again until enough groups lie within the range."""
    more, prompts = draft.value("rollout.vllm_generate_batch_size"), int(draft.value("rollout.batch_size"))
    if not draft.value("algo.dynamic_filtering_enable"):
        draft.moot("algo.dynamic_filtering_range", "dynamic filtering is off")
        draft.moot("rollout.vllm_generate_batch_size", "without dynamic filtering a step samples its own prompts")
        return
    if draft.value("algo.advantage.estimator") in ("gae", "reinforce"):
        draft.refuse("algo.dynamic_filtering_enable", "a group of equal rewards does teach this estimator; it is kept")
        return
    draft.write("algorithm.groups.zero_variance", "resample")
    draft.note(
        "algo.dynamic_filtering_enable",
        "there a group's mean must lie within the range; here its rewards must not all be equal, the same for rewards "
        "of 0 and 1",
    )
    if more is not None:
        draft.write("algorithm.groups.oversample", max(int(more) / prompts, 1.0))


def lengths(draft: Draft) -> None:
    """`max_len` bounds prompt and response together."""
    whole, response = int(draft.value("data.max_len")), draft.value("rollout.max_new_tokens")
    if response is None:
        response = whole // 2
        draft.note("data.max_len", "there a response may fill what its prompt leaves; here half is for either")
    if int(response) >= whole and draft.given("data.max_len"):
        raise ConfigError(f"rollout.max_new_tokens={response} leaves no room for a prompt within data.max_len={whole}")
    draft.write("data.max_prompt_tokens", max(whole - int(response), 1))
    draft.write("data.overlong", "filter")
    draft.note("data.max_len", "longer prompts are cut there, left out here (data.overlong)")
    draft.write("rollout.max_response_tokens", int(response))
    trl_parts.room(draft)
    if draft.value("train.dynamic_batch_enable") and draft.given("train.max_tokens_per_gpu"):
        draft.write("learner.microbatch_tokens", max(int(draft.value("train.max_tokens_per_gpu")), whole))
    else:
        draft.moot("train.max_tokens_per_gpu", "train.dynamic_batch_enable is not set")


def rewards(draft: Draft) -> None:
    """A reward model, a server, or a Python file; and a penalty for length."""
    remote, model = draft.value("reward.remote_url"), draft.value("reward.model_name_or_path")
    found: list[dict[str, Any]] = []
    for url in str(remote).split(",") if remote else []:
        if url.endswith(".py"):
            found.append({"name": "openrlhf_function", "function": f"{url}:reward_func"})
            draft.note(
                "reward.remote_url",
                "called as OpenRLHF calls it, here without the chat template's tokens in queries and prompts; the file "
                "is looked up from the folder where the run starts",
            )
        else:
            found.append({"name": "http", "url": url, "protocol": "openrlhf"})
            draft.note(
                "reward.remote_url",
                "asked in OpenRLHF's words: query, prompts and labels, here without the chat template's tokens; of the "
                "answer its rewards are read alone",
            )
    for path in str(model).split(",") if model and not remote else []:
        found.append({"name": "reward_model", "model": path})
    if model and remote:
        draft.moot("reward.model_name_or_path", "reward.remote_url decides")
    buffer = draft.value("reward.overlong_buffer_len")
    if not found:
        draft.refuse("reward.model_name_or_path", "none is named; wrote nothing: set rewards=[{name: ...}]")
        return
    if buffer is not None:
        bound = {"max_response_tokens": int(draft.written["rollout.max_response_tokens"]), "buffer_tokens": int(buffer)}
        weight = float(draft.value("reward.overlong_penalty_factor"))
        found.append({"name": "soft_overlong_punishment", "weight": weight, **bound})
    else:
        draft.moot("reward.overlong_penalty_factor", "reward.overlong_buffer_len is not set")
    draft.write("rewards", found)


def data(draft: Draft) -> None:
    """Several datasets by commas, with the shares of prompts drawn from each."""
    names = [name for name in str(draft.value("data.prompt_dataset") or "").split(",") if name]
    shares = str(draft.value("data.prompt_probs") or "").split(",")
    split = draft.value("data.prompt_split")
    if not names:
        draft.refuse("data.prompt_dataset", "none is named; wrote nothing: set data.train")
        return
    sources = [trl_parts.source(name, None, split, "train") for name in names]
    if len(names) > 1 and len(shares) == len(names):
        whole = [source if isinstance(source, dict) else {"name": source} for source in sources]
        draft.write("data.train", [node | {"weight": float(share)} for node, share in zip(whole, shares, strict=True)])
    else:
        draft.write("data.train", sources if len(sources) > 1 else sources[0])
    label = draft.value("data.label_key")
    if label is not None and label != "label":
        draft.write("data.columns", {"label": str(label)})
    template = draft.value("data.input_template")
    if template is not None:
        draft.write("data.prompt_template", str(template).replace("{}", "{{ content }}"))
    evaluation(draft)


def evaluation(draft: Draft) -> None:
    """Held-out data is sampled `n_samples_per_prompt` times."""
    held_out, interval = draft.value("eval.dataset"), int(draft.value("eval.steps"))
    names = [trl_parts.source(name, None, draft.value("eval.split"), "test") for name in str(held_out or "").split(",")]
    draft.write("data.eval", None if not held_out else names if len(names) > 1 else names[0])
    draft.write("eval.every", max(interval, 0) if held_out else 0)
    if not held_out or interval <= 0:
        for name in ("temperature", "n_samples_per_prompt", "split"):
            draft.moot(f"eval.{name}", "nothing is evaluated during training")
        return
    draft.write("eval.num_samples", int(draft.value("eval.n_samples_per_prompt")))
    draft.write("eval.temperature", float(draft.value("eval.temperature")))
    draft.note("eval.n_samples_per_prompt", "beside a greedy response")


def run(draft: Draft) -> None:
    """Precision, adapters, sampling ahead, trackers."""
    if draft.value("ds.param_dtype") != "bf16":
        draft.refuse("ds.param_dtype", f"no {draft.value('ds.param_dtype')} here; wrote bfloat16")
    draft.write("learner.dtype", "bfloat16")
    if draft.value("ds.lora.rank"):
        draft.write("learner.lora.alpha", float(draft.value("ds.lora.alpha")))
        draft.write("learner.lora.dropout", float(draft.value("ds.lora.dropout")))
        draft.write("learner.lora.target_modules", draft.value("ds.lora.target_modules"))
        draft.write("learner.lora.quantize_base", "nf4" if draft.value("ds.load_in_4bit") else None)
    else:
        for name in ("alpha", "dropout", "target_modules"):
            draft.moot(f"ds.lora.{name}", "ds.lora.rank is 0")
        if draft.value("ds.load_in_4bit"):
            draft.refuse("ds.load_in_4bit", "a quantized policy is trained by adapters: set ds.lora.rank")
    if draft.value("train.async_enable"):
        draft.write("train.max_staleness", int(draft.value("train.async_queue_size")))
        draft.note("train.async_queue_size", "there batches wait in a queue; here it is a hard bound on their age")
    else:
        draft.moot("train.async_queue_size", "train.async_enable is false")
    trackers: list[Any] = ["tensorboard"] if draft.value("logger.tensorboard_dir") else []
    if not trackers:
        draft.note("logger.tensorboard_dir", "unset, nothing is written for TensorBoard")
    if draft.value("logger.wandb.key"):
        pairs = (("project", "logger.wandb.project"), ("entity", "logger.wandb.org"))
        options = {ours: draft.value(theirs) for ours, theirs in pairs if draft.value(theirs)}
        trackers.append({"name": "wandb", **options})
        draft.note("logger.wandb.key", "not written: W&B reads WANDB_API_KEY")
    else:
        for name in ("project", "org"):
            draft.moot(f"logger.wandb.{name}", "logger.wandb.key is not set")
    draft.write("logging.trackers", trackers)


RULES = (
    batch, steps, schedule, advantage, critic, policy_loss, corrections, kl, groups, lengths, rewards, data, run,
)  # fmt: skip
