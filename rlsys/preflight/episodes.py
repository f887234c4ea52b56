"""Checks of an environment, its tools, and the limits of episodes."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from rlsys.config.episodes_schema import ON_END, POLICIES
from rlsys.config.schema import Config
from rlsys.data.chat import ChatTemplate
from rlsys.data.turns import Turns
from rlsys.environments.entry import EnvironmentSpec
from rlsys.errors import ConfigError, nearest

logger = logging.getLogger(__name__)


def check_episodes(config: Config, tokenizer: Any, max_context: int) -> Config:
    """Return the configuration with its limits written out, and without a reward that the environment never gives.

    Raises ConfigError for an environment, a tool, a chat template or limits that cannot work.
    """
    episodes = config.episodes
    for end, policy in episodes.on_end.items():
        if end not in ON_END:
            raise ConfigError(f"episodes.on_end: no episode ends with '{end}': {nearest(end, ON_END)}")
        if policy not in POLICIES:
            raise ConfigError(f"episodes.on_end.{end}={policy}: it must be one of {', '.join(POLICIES)}")
    max_tokens = episodes.max_tokens or max_context
    if max_tokens > max_context:
        raise ConfigError(
            f"episodes.max_tokens={max_tokens} is more than the model's context of {max_context} tokens: lower it, or "
            "set it to null"
        )
    spec = EnvironmentSpec.of(config.environment, config.tools)
    spec.maker()
    turns = Turns(ChatTemplate(tokenizer, config.data.chat_template_options), tokenizer)
    turns.check(has_tools=spec.has_tools)
    if not turns.keeps_answers():
        logger.info(
            "the chat template drops thoughts of earlier answers; episodes keep them, as they were sampled, since "
            "tokens that were sampled are never changed"
        )
    weight = episodes.reward_weight if spec.gives_rewards else 0.0
    return replace(config, episodes=replace(episodes, max_tokens=max_tokens, reward_weight=weight))
