"""Prompts: sources of rows, tokenisation, and the endless stream that training takes prompts from.

A registered source is `f(split, *, options) -> list of rows`; a row is a dict with at least the prompt column. A new
source is one file in this folder. Sampling and rewards do not belong here.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlsys.registry import Registry

Row = dict[str, Any]
SourceFn = Callable[..., list[Row]]
registry: Registry[SourceFn] = Registry("data source", __name__)
register = registry.register
