"""TRL's loss to ours: its names bundle what are four choices here."""

from __future__ import annotations

from typing import Any

from rlsys.commands.importers.draft import Draft
from rlsys.commands.importers.trl_batch import updates_a_step

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
TOKEN_MEAN = {"name": "token_mean"}
LEVELS = {"token": "token", "sequence": "sequence"}


def advantages(draft: Draft) -> None:
    """`multi_objective_aggregation` and `scale_rewards`."""
    if draft.value("multi_objective_aggregation") == "normalize_then_sum":
        draft.write("algorithm.advantage", {"name": "gdpo"})
        draft.moot("scale_rewards", "normalize_then_sum scales every reward within its group")
        return
    scale = draft.value("scale_rewards")
    name = {True: "group", False: "none"}.get(scale, scale) if isinstance(scale, bool) else str(scale)
    if name not in ("group", "batch", "none"):
        draft.refuse("scale_rewards", f"there is no scale '{name}' here; wrote algorithm.advantage.scale=group")
        name = "group"
    draft.write("algorithm.advantage", {"name": "grpo", "scale": name})


def aggregation(draft: Draft) -> None:
    """How tokens are averaged is half of `loss_type`."""
    loss = str(draft.value("loss_type"))
    known: dict[str, dict[str, Any]] = {
        "grpo": {"name": "sequence_mean"},
        "sapo": {"name": "sequence_mean"},
        "dapo": TOKEN_MEAN,
        "cispo": TOKEN_MEAN,
        "vespo": TOKEN_MEAN,
        "bnpo": {"name": "local_token_mean"},
        "dr_grpo": {"name": "constant_length", "length": draft.value("max_completion_length")},
        "luspo": {"name": "constant_length", "length": 1},  # the sum over a response's tokens
    }
    draft.write("algorithm.aggregation", known.get(loss, TOKEN_MEAN))
    if loss == "bnpo":
        rows = draft.value("per_device_train_batch_size")
        draft.note("loss_type", f"the local batch is {rows} rows there, learner.microbatch_tokens tokens here")


def policy_loss(draft: Draft) -> None:
    """The other half of `loss_type`, with `importance_sampling_level` and the bounds."""
    loss, level = str(draft.value("loss_type")), str(draft.value("importance_sampling_level") or "token")
    low = float(draft.value("epsilon"))
    high = draft.value("epsilon_high")
    high = low if high is None else float(high)
    if loss == "cispo":
        draft.write("algorithm.policy_loss", {"name": "cispo", "ratio_max": high})
        _no_bounds(draft, "epsilon", "delta", because="loss_type=cispo has one bound, epsilon_high")
        if draft.value("epsilon_high") is None:
            draft.note("epsilon", f"cispo's bound epsilon_high is not set and defaults to epsilon, {low}")
            draft.moot_because.pop("epsilon", None)
    elif loss == "sapo":
        tau = {"temperature_pos": "sapo_temperature_pos", "temperature_neg": "sapo_temperature_neg"}
        options = {ours: float(draft.detail(theirs)) for ours, theirs in tau.items()}
        draft.write("algorithm.policy_loss", {"name": "sapo", **options})
        _no_bounds(draft, "epsilon", "epsilon_high", "delta", because="loss_type=sapo does not clip")
    elif loss in CLIPPED and level == "sequence":
        draft.write("algorithm.policy_loss", {"name": "gspo", "clip_low": low, "clip_high": high})
        if draft.value("delta") is not None:
            draft.refuse("delta", "gspo has no second bound here")
    else:
        options = {"clip_low": low, "clip_high": high}
        if draft.value("delta") is not None:
            options["dual_clip"] = float(draft.value("delta"))
        draft.write("algorithm.policy_loss", {"name": "ppo_clip", **options})
        if loss not in CLIPPED:
            draft.refuse("loss_type", f"there is no '{loss}' here; wrote ppo_clip with token_mean")
    if level == "sequence" and loss not in CLIPPED:
        draft.refuse("importance_sampling_level", f"'{loss}' has a ratio for each token here")
    if loss != "sapo":
        _no_bounds(draft, "sapo_temperature_pos", "sapo_temperature_neg", because="loss_type is not sapo")


def _no_bounds(draft: Draft, *names: str, because: str) -> None:
    for name in names:
        draft.moot(name, because)


def kl(draft: Draft) -> None:
    """`beta` weighs k3 in the loss; 0 loads no reference on either side."""
    beta = float(draft.value("beta") or 0)
    draft.write("algorithm.kl.coef", beta)
    if beta == 0:
        draft.moot("use_bias_correction_kl", "beta=0: there is no KL")
        for name in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
            draft.moot(name, "beta=0: there is no reference")
        if draft.value("sync_ref_model"):
            draft.refuse("sync_ref_model", "beta=0 loads no reference to synchronise; TRL refuses this too")
        return
    draft.write("algorithm.kl.unbiased", bool(draft.value("use_bias_correction_kl")))
    if not draft.value("sync_ref_model"):
        for name in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
            draft.moot(name, "sync_ref_model is false")
        return
    updates, a_step = int(draft.value("ref_model_sync_steps")), updates_a_step(draft)
    draft.write("algorithm.refresh.every", max(round(updates / a_step), 1))
    draft.write("algorithm.refresh.alpha", float(draft.value("ref_model_mixup_alpha")))
    if updates % a_step:
        draft.note("ref_model_sync_steps", f"rounded to whole steps of {a_step} updates")


def corrections(draft: Draft) -> None:
    """What allows for engine and trainer not agreeing: TRL has it only where vLLM samples."""
    found: list[dict[str, Any]] = []
    names = ("vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min")
    if not draft.value("use_vllm"):
        for name in ("vllm_importance_sampling_correction", *names):
            draft.moot(name, "use_vllm is false: nothing is corrected there")
    elif draft.value("vllm_importance_sampling_correction"):
        found.append(_importance(draft))
    else:
        for name in names:
            draft.moot(name, "vllm_importance_sampling_correction is false")
    threshold = draft.value("off_policy_mask_threshold")
    if threshold is not None:
        found.append({"name": "opsm", "threshold": float(threshold)})
    draft.write("algorithm.corrections", found or None)


def _importance(draft: Draft) -> dict[str, Any]:
    level, _, kind = str(draft.detail("vllm_importance_sampling_mode")).partition("_")
    high, low = draft.detail("vllm_importance_sampling_clip_max"), draft.value("vllm_importance_sampling_clip_min")
    if kind not in ("mask", "truncate") or level not in LEVELS:
        draft.refuse("vllm_importance_sampling_mode", "there is no such mode here; wrote mask by sequence")
        level, kind = "sequence", "mask"
    if high is None:
        draft.note("vllm_importance_sampling_clip_max", "no upper bound there; 1e30 here")
    node = {"name": kind, "level": level, "high": 1e30 if high is None else float(high)}
    return node if low is None else node | {"low": float(low)}


def entropy(draft: Draft) -> None:
    """A bonus, fixed or following a target (Skywork-OR1)."""
    draft.write("algorithm.entropy.coef", float(draft.value("entropy_coef") or 0))
    details = ("entropy_target", "entropy_coef_delta", "entropy_coef_max", "entropy_coef_min")
    if not draft.value("use_adaptive_entropy"):
        for name in details:
            draft.moot(name, "use_adaptive_entropy is false")
        return
    for ours, theirs in zip(("target", "delta", "max_coef"), details[:3], strict=True):
        draft.write(f"algorithm.entropy.{ours}", float(draft.detail(theirs)))
    if float(draft.value("entropy_coef_min") or 0) != 0:
        draft.refuse("entropy_coef_min", "the adaptive coefficient's lower bound is 0 here")
