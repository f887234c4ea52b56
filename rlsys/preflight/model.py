"""Checks of the model's architecture, tried on a small copy before any process starts."""

from __future__ import annotations

import logging
from typing import Any

from rlsys.algorithms.requirements import needs_critic, reference_workers
from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.models.layout import choose_layout
from rlsys.models.rope import depends_on_length, pin_rope
from rlsys.models.small_copy import small_config
from rlsys.models.trial import folder_traits

logger = logging.getLogger(__name__)


def check_model(config: Config, model_path: str, max_tokens: int) -> None:
    """Raise ConfigError for a model that cannot be trained in the way that `config` asks for.

    A model of which no small copy can be built passes here, and is tried when the ranks have loaded it.
    """
    from transformers import AutoConfig, AutoModelForCausalLM

    trust = config.model.trust_remote_code
    traits = folder_traits(model_path, trust_remote_code=trust)
    if traits is None:
        return
    trained = {"learner": config.learner} | ({"critic": config.critic} if needs_critic(config) else {})
    layouts = {role: ranks.packing for role, ranks in trained.items()}
    if reference_workers(config):
        layouts["reference"] = config.reference.packing
    for role, packing in layouts.items():
        choose_layout(packing, traits, key=f"{role}.packing")
    for role, ranks in trained.items():
        if ranks.gradient_checkpointing and traits.checkpointing is not None:
            raise ConfigError(
                f"{role}.gradient_checkpointing=true is not possible with this model: {traits.checkpointing}; set "
                "it to false"
            )
    described = AutoConfig.from_pretrained(model_path, trust_remote_code=trust)
    _log_unused(described.get_text_config())
    if depends_on_length(described):
        pin_rope(AutoModelForCausalLM.from_config(small_config(described), trust_remote_code=trust), max_tokens)


def _log_unused(text: Any) -> None:
    """Log what the model's configuration asks of training and rlsys leaves out."""
    rates = {name: value for name, value in vars(text).items() if "drop" in name and isinstance(value, float) and value}
    if rates:
        logger.info("the model is trained without dropout; its config.json has %s", rates)
    if getattr(text, "output_router_logits", False):
        logger.warning(
            "config.json has output_router_logits=true, but rlsys adds no auxiliary loss that balances the experts"
        )
