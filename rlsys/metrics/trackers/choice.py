"""From `logging.trackers` to classes with their options."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlsys.errors import ConfigError
from rlsys.metrics.trackers import Tracker, registry


def chosen(entries: Sequence[Any]) -> dict[str, Callable[..., Tracker]]:
    """The class of each entry, a name or `{name: ..., option: value ...}`, by its name without a path.

    Raises ConfigError for an unknown tracker or option, one that comes twice, and a library that cannot be imported.
    """
    found: dict[str, Callable[..., Tracker]] = {}
    for entry in entries:
        spec = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(spec, Mapping):
            raise ConfigError(f"logging.trackers: {entry!r} is neither a name nor {{name: ..., option: value ...}}")
        try:
            opener = registry.component(spec)
            _import_library(str(spec["name"]))
        except ConfigError as error:
            raise ConfigError(f"logging.trackers: {error}") from error
        label = str(spec["name"]).rpartition(":")[2]
        if label in found:
            raise ConfigError(f"logging.trackers: '{label}' comes twice")
        found[label] = opener
    return found


def _import_library(name: str) -> None:
    extra = registry.fact(name, "extra", None)
    for module in registry.fact(name, "imports", ()):
        try:
            importlib.import_module(module)
        except Exception as error:  # whatever a broken installation raises
            remedy = f"pip install 'rlsys[{extra}]'" if extra else "pip install rlsys"
            raise ConfigError(
                f"tracker '{name}' cannot import {module} ({type(error).__name__}: {error}): {remedy}"
            ) from error
