"""The special tokens of a tokenizer that rewards look for in responses: `<think>` may be one, or the tag of a tool.

A registered reward states where its tags stand by the fact `tags`: a text, or a function of its options that returns
one. Of outside code the source file is searched.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rlsys.rewards import outside, registry
from rlsys.rewards.entry import function_options


def tags_of(specs: Sequence[Mapping[str, Any]]) -> str:
    """Return a text that contains every tag that the entries of `rewards` look for."""
    return "\n".join(map(_text, specs))


def source_of(*, function: str, **_: Any) -> str:
    """Return the file of an outside function as text: the tags of a reward that calls it."""
    return _source(outside(function=function))


def _text(spec: Mapping[str, Any]) -> str:
    name = str(spec["name"])
    if ":" in name:
        return _source(registry.get(name))
    tags = registry.fact(name, "tags", "")
    return str(tags(**function_options(spec)) if callable(tags) else tags)


def _source(function: Callable[..., Any]) -> str:
    try:
        return Path(inspect.getfile(inspect.unwrap(function))).read_text(encoding="utf-8", errors="replace")
    except (OSError, TypeError):  # compiled, or an object without a file
        return ""
