"""The trackers that `logging.trackers` names, with their options and libraries checked."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlsys.errors import ConfigError
from rlsys.metrics.trackers import Tracker, registry


def choose_trackers(entries: Sequence[Any]) -> dict[str, Callable[..., Tracker]]:
    """Return the class of each entry, with its options filled in, under its name without a path.

    Args:
        entries: names, or mappings `{name: ..., option: value ...}`.

    Raises:
        ConfigError: a tracker or option is unknown, a tracker is named twice, or its library cannot be imported.
    """
    found: dict[str, Callable[..., Tracker]] = {}
    for entry in entries:
        spec = {"name": entry} if isinstance(entry, str) else entry
        if not isinstance(spec, Mapping):
            raise ConfigError(f"logging.trackers: {entry!r} must be a name or {{name: ..., option: value ...}}")
        try:
            opener = registry.component(spec)
            _import_library(str(spec["name"]))
        except ConfigError as error:
            raise ConfigError(f"logging.trackers: {error}") from error
        label = str(spec["name"]).rpartition(":")[2]
        if label in found:
            raise ConfigError(f"logging.trackers: '{label}' is named twice; keep one of the entries")
        found[label] = opener
    return found


def _import_library(name: str) -> None:
    extra = registry.fact(name, "extra", None)
    for module in registry.fact(name, "imports", ()):
        try:
            importlib.import_module(module)
        except Exception as error:  # a broken installation may raise anything
            remedy = f"pip install 'rlsys[{extra}]'" if extra else "pip install rlsys"
            raise ConfigError(
                f"tracker '{name}' cannot import {module} ({type(error).__name__}: {error}): {remedy}"
            ) from error
