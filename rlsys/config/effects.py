"""Options that were set and change nothing, because another option switches off what they belong to."""

from __future__ import annotations

from dataclasses import replace

from rlsys.config.compose import resolve_dtypes
from rlsys.config.option import options
from rlsys.config.schema import Config


def without_effect(config: Config) -> dict[str, str]:
    """Return the keys that differ from their defaults in vain, each with the condition it needs that does not hold."""
    found = {}
    defaults = resolve_dtypes(replace(Config(), cluster=config.cluster))
    for option, default in zip(options(config), options(defaults), strict=True):
        missing = next((need for need in option.needs if not need.holds(config)), None)
        # A composed configuration has lists where the schema has tuples.
        value, usual = (tuple(v) if isinstance(v, list) else v for v in (option.value, default.value))
        if missing is not None and value != usual:
            found[option.key] = str(missing)
    return found
