"""An episode worker's part of the configuration."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rlsys.data.calls import OPENED, CallFormat
from rlsys.data.chat import ChatTemplate, special_tokens
from rlsys.data.turns import Turns
from rlsys.environments.entry import EnvironmentSpec
from rlsys.episodes.player import Limits, Player, Reader
from rlsys.episodes.slots import Slots
from rlsys.errors import ConfigError
from rlsys.models.resolve import load_tokenizer
from rlsys.preflight.prepared import Prepared


@dataclass(frozen=True)
class EpisodeSetup:
    """One episode worker's part of the configuration."""

    spec: EnvironmentSpec
    limits: Limits
    num_slots: int
    model_path: str
    stop_token_ids: frozenset[int]
    chat_template: str | None = None
    template_options: Mapping[str, Any] = field(default_factory=dict)
    trust_remote_code: bool = False
    linger_s: float = 0.0

    @classmethod
    def from_prepared(cls, prepared: Prepared) -> EpisodeSetup:
        """Return the setup of a run."""
        config, episodes = prepared.config, prepared.config.episodes
        sampled = episodes.max_sampled_tokens or prepared.max_tokens
        return cls(
            spec=EnvironmentSpec.of(config.environment, config.tools),
            limits=Limits(
                max_turns=episodes.max_turns,
                max_tokens=prepared.max_tokens,
                max_sampled_tokens=sampled,
                max_calls=episodes.max_calls,
                step_deadline_s=episodes.step_deadline_s,
                deadline_s=episodes.deadline_s * config.deadline_factor,
            ),
            num_slots=episodes.num_slots,
            model_path=prepared.model_path,
            stop_token_ids=frozenset(token.id for token in prepared.stop_tokens),
            chat_template=config.model.chat_template,
            template_options=config.data.chat_template_options,
            trust_remote_code=config.model.trust_remote_code,
            linger_s=config.rollout.linger_s,
        )

    def player(self, slots: Slots) -> Player:
        """Load the tokenizer; return what plays episodes in these slots."""
        tokenizer = load_tokenizer(
            self.model_path, trust_remote_code=self.trust_remote_code, chat_template=self.chat_template
        )
        template = ChatTemplate(tokenizer, self.template_options)
        opened = template.prompt([{"role": "user", "content": "1 what?"}])
        reader = Reader(
            decode=lambda ids: str(tokenizer.decode(list(ids), skip_special_tokens=False)),
            special=special_tokens(tokenizer),
            stops=self.stop_token_ids,
            calls=_call_format(template),
            is_thinking=opened.rstrip().endswith(OPENED),
        )
        return Player(slots, Turns(template, tokenizer), reader, self.limits, has_rewards=self.spec.gives_rewards)


def _call_format(template: ChatTemplate) -> CallFormat | None:
    """Return how the policy writes tool calls; None for a template that shows none."""
    try:
        return CallFormat.of(template)
    except ConfigError:
        return None
