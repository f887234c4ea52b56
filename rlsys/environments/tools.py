"""Tools alone: functions that the policy may call, until it answers without a call."""

from __future__ import annotations

import asyncio
import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlsys.environments import Opening, Turn
from rlsys.errors import ConfigError, nearest
from rlsys.registry import load_external

Tool = Callable[..., Any]


class Tools:
    """An environment of functions: each call's result, or its error, is a message."""

    def __init__(self, functions: Sequence[Tool]) -> None:
        """Make schemas of the functions; raises ConfigError for one without types or a docstring."""
        self._functions = {function.__name__: function for function in functions}
        self._schemas = [schema_of(function) for function in functions]

    async def start(self, **_: Any) -> Opening:
        """Begin with the row's prompt."""
        return Opening(tools=self._schemas)

    async def step(self, message: Mapping[str, Any]) -> Turn:
        """Execute every call of the message; those of coroutine functions run at the same time."""
        calls = message.get("tool_calls") or []
        results = await asyncio.gather(*(self._result(call["function"]) for call in calls))
        messages = [
            {"role": "tool", "tool_call_id": call["id"], "name": call["function"]["name"], "content": content}
            for call, (content, _) in zip(calls, results, strict=True)
        ]
        failed = float(sum(has_failed for _, has_failed in results))
        return Turn(messages, done=not calls, metrics={"failed_calls": failed} if calls else {})

    async def _result(self, call: Mapping[str, Any]) -> tuple[str, bool]:
        """Return what the policy sees of a call, and whether it failed."""
        function = self._functions.get(call["name"])
        if function is None:
            return f"There is no tool '{call['name']}'; {nearest(call['name'], self._functions)}", True
        try:
            found = function(**call["arguments"])
            return as_content(await found if inspect.isawaitable(found) else found), False
        except Exception as error:  # the policy may do better next time
            return f"{type(error).__name__}: {error}", True


def load_tools(names: Sequence[str]) -> list[Tool]:
    """Import functions by `path.py:function` or `module:function`; raises ConfigError."""
    return [load_external(name, "tool") for name in names]


def schema_of(function: Tool) -> dict[str, Any]:
    """Return a function's JSON schema, from its types and its docstring; raises ConfigError without these."""
    from transformers.utils import get_json_schema

    try:
        schema: dict[str, Any] = get_json_schema(function)
    except Exception as error:
        raise ConfigError(
            f"tool '{function.__name__}': {error}. A tool needs type hints, and a docstring with a line per argument "
            "under `Args:`"
        ) from error
    return schema


def as_content(value: Any) -> str:
    """Return what a tool has returned as text: text as it is, blocks joined, anything else as JSON."""
    if isinstance(value, str):
        return value
    if isinstance(value, list) and value and all(isinstance(block, Mapping) and "text" in block for block in value):
        return "".join(str(block["text"]) for block in value)
    return json.dumps(value, ensure_ascii=False, default=str)
