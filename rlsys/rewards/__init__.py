"""Reward functions, TRL's signature unchanged.

`f(prompts, completions, completion_ids, **dataset_columns, trainer_state, log_extra, log_metric) -> list[float | None]`

A function takes the arguments it names (all of them with `**kwargs`); `None` means not applicable. Prompts and
completions are strings, or chat messages for conversational data. Keyword-only parameters with a default are options
that the run's `rewards` list may set; one without a default is an option that it must set (in outside code: a column).

A class does for a reward that must load something: its keyword-only arguments are the options, it is made before the
first deadline runs, and its objects are called like functions.

A reward may register with facts:
    imports=("module",)     what is slow to import: its process imports it before the first deadline runs
    check=function          takes every option and raises ValueError, before Ray starts, for values that cannot work or
                            a machine that lacks what they need
    paths=("option",)       options that name files, resolved where the run is started
    whole_groups=True       compares a prompt's responses: one call must hold all of them
    deadline_s=60.0         of a call, unless its entry in `rewards` says otherwise; a function that takes `deadline_s`
                            is told how many seconds it has before its process is killed
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlsys.registry import Registry
from rlsys.types import Outcome


@dataclass(frozen=True)
class Failed:
    """In place of a score: this row could not be judged, through no fault of the response."""

    detail: str
    outcome: Outcome = "error"


Scores = list[float | Failed | None]
RewardFn = Callable[..., Any]
"""Gives Scores, or an awaitable of them; or a class whose objects do."""
registry: Registry[RewardFn] = Registry("reward", __name__)
register = registry.register


OPENRLHF_LABELS = ("label", "answer")
"""The columns that OpenRLHF's labels come from: the first that there is."""


def openrlhf_labels(columns: Mapping[str, Sequence[Any]], count: int) -> list[Any]:
    """One a row; None where there is no such column."""
    column = next((columns[name] for name in OPENRLHF_LABELS if name in columns), [None] * count)
    return list(column)


def content(completion: str | list[dict[str, str]]) -> str:
    """The text of a completion, plain or conversational."""
    return completion if isinstance(completion, str) else completion[-1]["content"]


def plain(messages: str | list[dict[str, str]]) -> str:
    """A text as it is; of messages the contents, a blank line between them."""
    return messages if isinstance(messages, str) else "\n\n".join(str(message["content"]) for message in messages)
