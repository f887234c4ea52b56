"""The options of a run that differ from the defaults."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from omegaconf import OmegaConf

from rlsys.config.schema import Config
from rlsys.config.written import publishable


def find_changed_options(config: Config) -> str:
    """Return the options that differ from the defaults, as YAML; `config` is in the form that may be published."""
    given, default = (OmegaConf.to_container(OmegaConf.create(asdict(one))) for one in (config, publishable(Config())))
    return OmegaConf.to_yaml(_difference(given, default)) or "{}\n"


def _difference(given: Any, default: Any) -> Any:
    if not isinstance(given, dict) or not isinstance(default, dict):
        return given
    return {
        key: _difference(value, default.get(key))
        for key, value in given.items()
        if key not in default or value != default[key]
    }
