"""Checks of the model's architecture, tried on a small copy before any process starts."""

from __future__ import annotations

from rlsys.algorithms.requirements import reference_workers, trained_roles
from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.models.layout import choose_layout
from rlsys.models.rope import depends_on_length, pin_rope
from rlsys.models.small_copy import small_config
from rlsys.models.trial import folder_traits


def check_model(config: Config, model_path: str, max_tokens: int) -> None:
    """Raise ConfigError for a model that cannot be trained in the way that `config` asks for.

    A model of which no small copy can be built passes here, and is tried when the ranks have loaded it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = config.model.trust_remote_code
    traits = folder_traits(model_path, trust_remote_code=trust)
    if traits is None:
        return
    for role, packing in layouts(config).items():
        choose_layout(packing, traits, key=f"{role}.packing")
    for role, ranks in trained_roles(config).items():
        if ranks.gradient_checkpointing and traits.checkpointing is not None:
            raise ConfigError(
                f"{role}.gradient_checkpointing=true is not possible with this model: {traits.checkpointing}; set "
                "it to false"
            )
    described = AutoConfig.from_pretrained(model_path, trust_remote_code=trust)
    if depends_on_length(described):
        pin_rope(AutoModelForCausalLM.from_config(small_config(described), trust_remote_code=trust), max_tokens)


def layouts(config: Config) -> dict[str, str]:
    """Return the option `packing` of every role of the run that computes the model, by role."""
    found = {role: ranks.packing for role, ranks in trained_roles(config).items()}
    return found | ({"reference": config.reference.packing} if reference_workers(config) else {})


def unused_settings(model_path: str, *, trust_remote_code: bool) -> list[str]:
    """Return what the model's config.json asks of training and rlsys leaves out, each with what holds instead."""
    from transformers import AutoConfig

    text = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code).get_text_config()
    rates = {name: value for name, value in vars(text).items() if "drop" in name and isinstance(value, float) and value}
    named = ", ".join(f"{name} {rate:g}" for name, rate in rates.items())
    found = [f"{named} (trained without dropout)"] if rates else []
    traits = folder_traits(model_path, trust_remote_code=trust_remote_code)
    if getattr(text, "output_router_logits", False) and traits is not None and traits.balance is None:
        found.append("output_router_logits True (transformers has no auxiliary loss for this architecture)")
    return found
