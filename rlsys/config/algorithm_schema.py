"""Options of the algorithm: the section `algorithm`."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rlsys.config.option import option


@dataclass
class KlConfig:
    """KL penalty towards the reference."""

    coef: float = option(0.0, ge=0, help="weight of the penalty; 0: no reference; the preset algorithm=grpo sets 0.04")
    name: str = option("k3", help="estimator: k1, k2, k3, abs, or outside code as module:function", needs="coef > 0")
    apply_to: str = option(
        "loss",
        choices=("loss", "reward"),
        help="loss: per token; reward: subtracted from it, summed over the response of the policy that sampled",
        needs="coef > 0",
    )
    unbiased: bool = option(
        False, help="loss: weigh by the ratio, so that k3's gradient is the gradient of the KL", needs="coef > 0"
    )
    target: float | None = option(
        None, gt=0, help="KL per token that an adaptive weight aims at; null: `coef` stays", needs="coef > 0"
    )
    horizon: int = option(
        10000, ge=1, help="trajectories over which an adaptive weight changes", needs="target != null"
    )


@dataclass
class EntropyConfig:
    """Entropy bonus, and the choice of tokens by entropy."""

    coef: float = option(0.0, ge=0, help="weight of the bonus, which is a mean over all tokens")
    target: float | None = option(
        None, ge=0, help="adaptive weight: applied, and growing, while the entropy per token is at most this"
    )
    delta: float = option(0.005, ge=0, help="change of an adaptive weight per step", needs="target != null")
    max_coef: float = option(1.0, ge=0, help="largest adaptive weight", needs="target != null")
    top_quantile: float = option(
        1.0, gt=0, le=1, help="share of the tokens, those of highest entropy, that the policy gradient uses"
    )


@dataclass
class GroupsConfig:
    """The choice of the groups that are trained."""

    zero_variance: str = option(
        "keep", choices=("keep", "drop", "resample"), help="what to do with groups whose rewards are all equal"
    )
    oversample: float = option(
        1.0, ge=1, help="resample: draw this many prompts per missing one", needs="zero_variance = resample"
    )
    max_tries: int = option(
        10,
        ge=1,
        help="resample: give up after drawing `max_tries * prompts_per_step` prompts, train the groups found",
        needs="zero_variance = resample",
    )
    mask_truncated: bool = option(
        False, help="responses cut at `max_response_tokens` count for the baseline but are not trained"
    )


@dataclass
class RefreshConfig:
    """Updates of the reference: `reference = alpha * policy + (1 - alpha) * reference`."""

    every: int = option(0, ge=0, help="steps between updates; 0: never")
    alpha: float = option(0.6, gt=0, le=1, help="share of the policy; 1 replaces the reference", needs="every > 0")


@dataclass
class AlgorithmConfig:
    """The algorithm. `advantage`, `policy_loss` and `aggregation` are a function's name and that function's options."""

    advantage: dict[str, Any] = option({"name": "grpo"}, help="advantage estimator")
    policy_loss: dict[str, Any] = option({"name": "ppo_clip"}, help="policy loss")
    aggregation: dict[str, Any] = option({"name": "token_mean"}, help="how the losses of tokens are averaged")
    corrections: list[dict[str, Any]] | None = option(
        None,
        help="weights from the engine's to the learner's policy, each a name and options; null: `truncate` when "
        "sampling runs ahead, else none",
    )
    kl: KlConfig = field(default_factory=KlConfig)
    entropy: EntropyConfig = field(default_factory=EntropyConfig)
    groups: GroupsConfig = field(default_factory=GroupsConfig)
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
