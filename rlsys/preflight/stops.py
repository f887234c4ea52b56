"""The tokens that end a response: found once, before Ray starts, for training and evaluation alike."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rlsys.errors import ConfigError
from rlsys.models.resolve import ModelFacts
from rlsys.registry import fits

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StopToken:
    """A token that ends a response, and everything that makes it one."""

    id: int
    text: str
    sources: tuple[str, ...]  # config.json, generation_config.json, tokenizer, chat template, rollout.stop


def stop_tokens(
    tokenizer: Any, facts: ModelFacts, *, end_of_turn: int | None, chosen: Sequence[Any], needs_one: bool
) -> tuple[StopToken, ...]:
    """Return the tokens that end a response, in the order of their sources.

    Args:
        tokenizer: the policy's; its end token is one of them.
        facts: the model's, with the end tokens that its files name.
        end_of_turn: the token that the chat template puts behind an assistant's message; None without a conversation.
        chosen: the option `rollout.stop`.
        needs_one: whether a run without any is refused.

    Raises:
        ConfigError: an entry of `rollout.stop` is not one token of the model, or there is no token and one is needed.
    """
    named: dict[str, Iterable[int | None]] = {
        **facts.end_ids,
        "tokenizer": [tokenizer.eos_token_id],
        "chat template": [end_of_turn],
    }
    sources: dict[int, dict[str, None]] = {}
    for source, ids in named.items():
        for number in ids:
            if number is not None and 0 <= number < facts.vocab_rows:
                sources.setdefault(number, {})[source] = None
            elif number is not None:
                logger.warning("%s: the end token %d never ends a response: the model lacks it", source, number)
    for entry in chosen:
        sources.setdefault(_chosen(entry, tokenizer, facts.vocab_rows), {})["rollout.stop"] = None
    if needs_one and not sources:
        raise ConfigError(
            "no token ends a response: config.json, generation_config.json and the tokenizer name none. Name one in "
            "rollout.stop, or set rollout.ignore_eos=true to sample rollout.max_response_tokens tokens always"
        )
    return tuple(StopToken(number, tokenizer.decode([number]), tuple(why)) for number, why in sources.items())


def _chosen(entry: Any, tokenizer: Any, vocab_rows: int) -> int:
    """Return the id of an entry of `rollout.stop`."""
    where = f"rollout.stop: {entry!r}"
    if isinstance(entry, str):
        ids = tokenizer(entry, add_special_tokens=False)["input_ids"]
        is_unknown = ids == [tokenizer.unk_token_id] and entry != tokenizer.unk_token
        if len(ids) != 1 or is_unknown:
            found = "unknown to the tokenizer" if is_unknown or not ids else f"{len(ids)} tokens"
            raise ConfigError(
                f"{where} is {found}, and a response ends at a single token: engines handle tokens, not texts, and do "
                "not look for a text across tokens. Name one token, by its text or its id"
            )
        (entry,) = ids
    if not fits(entry, int):
        raise ConfigError(f"{where} is neither a token's text nor its id")
    if not 0 <= entry < vocab_rows:
        raise ConfigError(f"{where}: the model has no token {entry}; its ids are 0 to {vocab_rows - 1}")
    return int(entry)
