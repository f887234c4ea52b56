"""Environments, one file each: what answers a policy's messages, turn by turn.

    class Environment:                                   # one object per episode; options are keyword-only arguments
        async def start(self, **row) -> Opening: ...     # the row of the data, with its prompt
        async def step(self, message) -> Turn: ...       # the policy's message, with its tool calls
        async def close(self) -> None: ...               # optional

Methods may be plain functions too. A class with `@register("name")` is one by that name, outside code one by
`path.py:Class`. A class of TRL's form (`reset(**row)`, public methods as tools, perhaps `get_reward`) works as it is.

Environments see messages alone. Tokens, budgets, deadlines and processes belong to `episodes`: every episode's code
runs in a process of its own, which ends with the episode.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from rlsys.registry import Registry
from rlsys.types import Messages


@dataclass(frozen=True)
class Opening:
    """How an episode begins."""

    messages: Messages | None = None  # the conversation so far; None: the row's prompt
    tools: list[dict[str, Any]] | None = None  # JSON schemas of functions, as OpenAI's interface has them


@dataclass(frozen=True)
class Turn:
    """What an environment answers to one message of the policy."""

    messages: Messages = field(default_factory=list)  # empty at the end of an episode
    reward: float | None = None  # of this turn; an episode's is the sum of its turns'
    done: bool = False
    metrics: Mapping[str, float] = field(default_factory=dict)


class ParseError(Exception):
    """The policy's message cannot be understood, and the episode ends with it: raised by `step`."""


class Environment(Protocol):
    """One episode's environment."""

    async def start(self, **row: Any) -> Opening:
        """Begin an episode with a row of the data."""

    async def step(self, message: dict[str, Any]) -> Turn:
        """Answer the policy's message: `content`, and `tool_calls` where it has some.

        A call is `{id, type: function, function: {name, arguments}}` with the arguments as a mapping. Calls that cannot
        be read are not among them: the policy gets the reason instead.
        """


registry: Registry[Any] = Registry("environment", __name__)
register = registry.register
