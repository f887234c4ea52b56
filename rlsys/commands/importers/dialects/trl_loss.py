"""TRL's loss to ours: its names bundle what are four choices here."""

from __future__ import annotations

from typing import Any

from rlsys.commands.importers.dialects.trl_batch import updates_a_step
from rlsys.commands.importers.recipe import Recipe

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")
TOKEN_MEAN = {"name": "token_mean"}
LEVELS = {"token": "token", "sequence": "sequence"}


def advantages(recipe: Recipe) -> None:
    """`multi_objective_aggregation` and `scale_rewards`."""
    if recipe.value("multi_objective_aggregation") == "normalize_then_sum":
        recipe.write("algorithm.advantage", {"name": "gdpo"})
        recipe.mark_ignored("scale_rewards", "normalize_then_sum scales every reward within its group")
        return
    scale = recipe.value("scale_rewards")
    name = {True: "group", False: "none"}.get(scale, scale) if isinstance(scale, bool) else str(scale)
    if name not in ("group", "batch", "none"):
        recipe.mark_unsupported(
            "scale_rewards", f"there is no scale '{name}' here; wrote algorithm.advantage.scale=group"
        )
        name = "group"
    recipe.write("algorithm.advantage", {"name": "grpo", "scale": name})


def aggregation(recipe: Recipe) -> None:
    """How tokens are averaged is half of `loss_type`."""
    loss = str(recipe.value("loss_type"))
    known: dict[str, dict[str, Any]] = {
        "grpo": {"name": "sequence_mean"},
        "sapo": {"name": "sequence_mean"},
        "dapo": TOKEN_MEAN,
        "cispo": TOKEN_MEAN,
        "vespo": TOKEN_MEAN,
        "bnpo": {"name": "local_token_mean"},
        "dr_grpo": {"name": "constant_length", "length": recipe.value("max_completion_length")},
        "luspo": {"name": "constant_length", "length": 1},  # the sum over a response's tokens
    }
    recipe.write("algorithm.aggregation", known.get(loss, TOKEN_MEAN))
    if loss == "bnpo":
        rows = recipe.value("per_device_train_batch_size")
        recipe.note("loss_type", f"the local batch is {rows} rows there, learner.microbatch_tokens tokens here")


def policy_loss(recipe: Recipe) -> None:
    """The other half of `loss_type`, with `importance_sampling_level` and the bounds."""
    loss, level = str(recipe.value("loss_type")), str(recipe.value("importance_sampling_level") or "token")
    low = float(recipe.value("epsilon"))
    high = recipe.value("epsilon_high")
    high = low if high is None else float(high)
    if loss == "cispo":
        recipe.write("algorithm.policy_loss", {"name": "cispo", "ratio_max": high})
        _no_bounds(recipe, "epsilon", "delta", because="loss_type=cispo has one bound, epsilon_high")
        if recipe.value("epsilon_high") is None:
            recipe.note("epsilon", f"cispo's bound epsilon_high is not set and defaults to epsilon, {low}")
            recipe.ignored.pop("epsilon", None)
    elif loss == "sapo":
        tau = {"temperature_pos": "sapo_temperature_pos", "temperature_neg": "sapo_temperature_neg"}
        options = {ours: float(recipe.detail(theirs)) for ours, theirs in tau.items()}
        recipe.write("algorithm.policy_loss", {"name": "sapo", **options})
        _no_bounds(recipe, "epsilon", "epsilon_high", "delta", because="loss_type=sapo does not clip")
    elif loss in CLIPPED and level == "sequence":
        recipe.write("algorithm.policy_loss", {"name": "gspo", "clip_low": low, "clip_high": high})
        if recipe.value("delta") is not None:
            recipe.mark_unsupported("delta", "gspo has no second bound here")
    else:
        options = {"clip_low": low, "clip_high": high}
        if recipe.value("delta") is not None:
            options["dual_clip"] = float(recipe.value("delta"))
        recipe.write("algorithm.policy_loss", {"name": "ppo_clip", **options})
        if loss not in CLIPPED:
            recipe.mark_unsupported("loss_type", f"there is no '{loss}' here; wrote ppo_clip with token_mean")
    if level == "sequence" and loss not in CLIPPED:
        recipe.mark_unsupported("importance_sampling_level", f"'{loss}' has a ratio for each token here")
    if loss != "sapo":
        _no_bounds(recipe, "sapo_temperature_pos", "sapo_temperature_neg", because="loss_type is not sapo")


def _no_bounds(recipe: Recipe, *names: str, because: str) -> None:
    for name in names:
        recipe.mark_ignored(name, because)


def kl(recipe: Recipe) -> None:
    """`beta` weighs k3 in the loss; 0 loads no reference on either side."""
    beta = float(recipe.value("beta") or 0)
    recipe.write("algorithm.kl.coef", beta)
    if beta == 0:
        recipe.mark_ignored("use_bias_correction_kl", "beta=0: there is no KL")
        for name in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
            recipe.mark_ignored(name, "beta=0: there is no reference")
        if recipe.value("sync_ref_model"):
            recipe.mark_unsupported("sync_ref_model", "beta=0 loads no reference to synchronise; TRL refuses this too")
        return
    recipe.write("algorithm.kl.unbiased", bool(recipe.value("use_bias_correction_kl")))
    if not recipe.value("sync_ref_model"):
        for name in ("ref_model_mixup_alpha", "ref_model_sync_steps"):
            recipe.mark_ignored(name, "sync_ref_model is false")
        return
    updates, a_step = int(recipe.value("ref_model_sync_steps")), updates_a_step(recipe)
    recipe.write("algorithm.refresh.every", max(round(updates / a_step), 1))
    recipe.write("algorithm.refresh.alpha", float(recipe.value("ref_model_mixup_alpha")))
    if updates % a_step:
        recipe.note("ref_model_sync_steps", f"rounded to whole steps of {a_step} updates")


def corrections(recipe: Recipe) -> None:
    """What allows for engine and trainer not agreeing: TRL has it only where vLLM samples."""
    found: list[dict[str, Any]] = []
    names = ("vllm_importance_sampling_mode", "vllm_importance_sampling_clip_max", "vllm_importance_sampling_clip_min")
    if not recipe.value("use_vllm"):
        for name in ("vllm_importance_sampling_correction", *names):
            recipe.mark_ignored(name, "use_vllm is false: nothing is corrected there")
    elif recipe.value("vllm_importance_sampling_correction"):
        found.append(_importance(recipe))
    else:
        for name in names:
            recipe.mark_ignored(name, "vllm_importance_sampling_correction is false")
    threshold = recipe.value("off_policy_mask_threshold")
    if threshold is not None:
        found.append({"name": "opsm", "threshold": float(threshold)})
    recipe.write("algorithm.corrections", found or None)


def _importance(recipe: Recipe) -> dict[str, Any]:
    level, _, kind = str(recipe.detail("vllm_importance_sampling_mode")).partition("_")
    high, low = recipe.detail("vllm_importance_sampling_clip_max"), recipe.value("vllm_importance_sampling_clip_min")
    if kind not in ("mask", "truncate") or level not in LEVELS:
        recipe.mark_unsupported("vllm_importance_sampling_mode", "there is no such mode here; wrote mask by sequence")
        level, kind = "sequence", "mask"
    if high is None:
        recipe.note("vllm_importance_sampling_clip_max", "no upper bound there; 1e30 here")
    node = {"name": kind, "level": level, "high": 1e30 if high is None else float(high)}
    return node if low is None else node | {"low": float(low)}


def entropy(recipe: Recipe) -> None:
    """A bonus, fixed or following a target (Skywork-OR1)."""
    recipe.write("algorithm.entropy.coef", float(recipe.value("entropy_coef") or 0))
    details = ("entropy_target", "entropy_coef_delta", "entropy_coef_max", "entropy_coef_min")
    if not recipe.value("use_adaptive_entropy"):
        for name in details:
            recipe.mark_ignored(name, "use_adaptive_entropy is false")
        return
    for ours, theirs in zip(("target", "delta", "max_coef"), details[:3], strict=True):
        recipe.write(f"algorithm.entropy.{ours}", float(recipe.detail(theirs)))
    if float(recipe.value("entropy_coef_min") or 0) != 0:
        recipe.mark_unsupported("entropy_coef_min", "the adaptive coefficient's lower bound is 0 here")
