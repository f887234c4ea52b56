"""Prompts: registered sources and datasets, tokenisation, and the cursor over them.

A source is `f(split, *, options) -> list of rows`; each row is a dict with at least the prompt column.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rlsys.registry import Registry

Row = dict[str, Any]
SourceFn = Callable[..., list[Row]]
registry: Registry[SourceFn] = Registry("data source", __name__)
register = registry.register
