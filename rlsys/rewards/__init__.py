"""Reward functions, one file each, with the signature of TRL's.

`f(prompts, completions, completion_ids, **dataset_columns, trainer_state, log_extra, log_metric) -> list[float | None]`

A function gets the arguments that it names, or all of them if it takes `**kwargs`; `None` as a score means that the
reward does not apply to this row. Prompts and completions are strings, or chat messages for conversational data.
Keyword-only parameters with a default are options that the run's `rewards` list may set. One without a default is an
option that the list must set; in your own functions it is a column of the data.

A reward that must load something is a class: its keyword-only arguments are the options, an object is made before the
first deadline starts, and the object is called like a function.

A reward may register with facts:
    imports=("module",)     modules that are slow to import; its process imports them before the first deadline starts
    check=function          is called with all options before Ray starts, and raises ValueError for values that cannot
                            work or a machine that lacks what they need
    paths=("option",)       options that name files; relative paths are resolved where the run is started
    whole_groups=True       the reward compares a prompt's responses: one call must hold all of them
    deadline_s=60.0         the deadline of a call, if its entry in `rewards` has none; a function with a parameter
                            `deadline_s` gets the number of seconds until its process is killed
    rests_at=0.0            the score of a response that there is nothing to say about, as of a penalty; that all
                            responses get it is no cause for a warning
    judges_answers=True     the reward decides whether an answer is correct (at `eval.correct_at`), so it alone counts
                            for accuracy; also a function of the options. Outside code sets an attribute of that name
    tags="<think>"          a text with the tags that the reward looks for, or a function of the options that returns
                            one: those that are special tokens stay in the responses (`tags.py`)
    one_of=("a", "b")       columns of which the data must have one
    usable=("column", f)    `f(value, **options)` returns whether the reward can work with a row's value of that column;
                            rows with other values are counted and shown before Ray starts

How functions are called, in processes and with deadlines, belongs to `scoring`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rlsys.registry import Registry, load_external
from rlsys.types import Outcome


@dataclass(frozen=True)
class Failed:
    """A stand-in for the score of a row that could not be judged, for a reason that is not the response's fault."""

    detail: str
    outcome: Outcome = "error"


Scores = list[float | Failed | None]
RewardFn = Callable[..., Any]  # returns Scores or an awaitable of them; or a class whose objects do
registry: Registry[RewardFn] = Registry("reward", __name__)
register = registry.register


OPENRLHF_LABELS = ("label", "answer")  # OpenRLHF's labels come from the first of these columns that exists


def openrlhf_labels(columns: Mapping[str, Sequence[Any]], count: int) -> list[Any]:
    """Return OpenRLHF's labels, one per row; None for each row if there is no such column."""
    column = next((columns[name] for name in OPENRLHF_LABELS if name in columns), [None] * count)
    return list(column)


def outside(*, function: str, **_: Any) -> Any:
    """Return the outside function that a reward's option `function` names; a `check` that there is one."""
    return load_external(function, "reward")


def content(completion: str | list[dict[str, str]]) -> str:
    """Return the text of a completion, plain or conversational: of an episode the policy's last words."""
    if isinstance(completion, str):
        return completion
    said = [message["content"] for message in completion if message.get("role") == "assistant"]
    return said[-1] if said else ""


def plain(messages: str | list[dict[str, str]]) -> str:
    """Return text unchanged, and messages as their contents with a blank line in between."""
    return messages if isinstance(messages, str) else "\n\n".join(str(message["content"]) for message in messages)
