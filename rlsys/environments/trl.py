"""Environments of TRL's form: `reset(**row)`, public methods as tools, perhaps `get_reward`."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from rlsys.environments import Opening, Turn
from rlsys.environments.tools import Tools
from rlsys.types import Messages

OWN = ("reset", "get_reward")  # public methods that are no tools


class TrlEnvironment:
    """A TRL environment behind rlsys's interface, with tools beside its own."""

    def __init__(self, made: Any, tools: list[Callable[..., Any]]) -> None:
        """Wrap an object; raises ConfigError for a method without types or a docstring."""
        self._made = made
        methods = inspect.getmembers(type(made), predicate=inspect.isfunction)
        own = [getattr(made, name) for name, _ in methods if name not in OWN and not name.startswith("_")]
        self._tools = Tools([*tools, *own])

    async def start(self, *, prompt: Messages, **row: Any) -> Opening:
        """Reset it; what that returns is added to the last message of the prompt."""
        opening = await self._tools.start()
        added = await _awaited(self._made.reset(prompt=prompt, **row))
        if added is None:
            return opening
        text = added if isinstance(added, str) else "".join(str(block.get("text", "")) for block in added)
        last = {**prompt[-1], "content": prompt[-1]["content"] + text}
        return Opening([*prompt[:-1], last], opening.tools)

    async def step(self, message: Mapping[str, Any]) -> Turn:
        """Execute the calls; at the end ask for the reward."""
        turn = await self._tools.step(message)
        if not turn.done or not hasattr(self._made, "get_reward"):
            return turn
        return Turn(done=True, reward=await self.reward())

    async def reward(self) -> float | None:
        """Return what `get_reward` gives now; None without it."""
        if not hasattr(self._made, "get_reward"):
            return None
        value = await _awaited(self._made.get_reward())
        return None if value is None else float(value)

    def state(self) -> dict[str, Any]:
        """Return the object's public attributes, which reward functions get as `environments`."""
        return {name: value for name, value in vars(self._made).items() if not name.startswith("_")}


async def _awaited(value: Any) -> Any:
    return await value if inspect.isawaitable(value) else value
