"""Reward functions, TRL's signature unchanged.

`f(prompts, completions, completion_ids, **dataset_columns, trainer_state, log_extra, log_metric) -> list[float | None]`

A function takes the arguments it names (all of them with `**kwargs`); `None` means not applicable. Prompts and
completions are strings, or chat messages for conversational data. Keyword-only parameters with a default are options
that the run's `rewards` list may set. A function that imports something slow registers with `imports=("module",)`:
its process then imports it before the first deadline runs.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable

from rlsys.registry import Registry

Scores = list[float | None]
RewardFn = Callable[..., Scores | Awaitable[Scores]]
registry: Registry[RewardFn] = Registry("reward", __name__)
register = registry.register


def content(completion: str | list[dict[str, str]]) -> str:
    """The text of a completion, plain or conversational."""
    return completion if isinstance(completion, str) else completion[-1]["content"]
