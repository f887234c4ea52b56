"""The options of a run that differ from the defaults."""

from __future__ import annotations

from typing import Any

from omegaconf import OmegaConf

from rlsys.config.schema import Config


def find_changed_options(config: Config) -> str:
    """Return the options that differ from the defaults, as YAML."""
    given, default = OmegaConf.structured(config), OmegaConf.structured(Config)
    plain = OmegaConf.to_container(given), OmegaConf.to_container(default)
    return OmegaConf.to_yaml(_difference(*plain)) or "{}\n"


def _difference(given: Any, default: Any) -> Any:
    if not isinstance(given, dict) or not isinstance(default, dict):
        return given
    return {
        key: _difference(value, default.get(key))
        for key, value in given.items()
        if key not in default or value != default[key]
    }
