"""YAML as the projects' own parsers read it: YAML 1.1, with `1e-6` as a number and every key once.

Only `true` and `false` become booleans here. `yes`, `no`, `on` and `off` stay words, because some options take them as
words (`eval_strategy: no`) and others as switches: `typed_value` decides that by the option.
"""

from __future__ import annotations

from typing import Any

import yaml
from omegaconf._utils import get_yaml_loader

from rlsys.errors import ConfigError

BOOLEANS = {"true": True, "false": False}
_BOOLEAN_TAG = "tag:yaml.org,2002:bool"


def load_yaml(text: str, origin: object) -> Any:
    """Return the value of a YAML text; `origin` names it in errors. Raises ConfigError for what YAML cannot be."""
    try:
        return yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a number or a date that no calendar has
        raise ConfigError(f"{origin} is neither YAML nor JSON that can be read: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{origin} is nested too deeply to be read") from error


def override_value(text: str) -> Any:
    """Return the value of a `name=value` override: YAML, or the text itself where it is none."""
    try:
        return yaml.load(text, Loader=_LOADER)
    except (yaml.YAMLError, ValueError):
        return text


def _boolean_or_word(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> bool | str:
    word = str(loader.construct_scalar(node))
    return BOOLEANS.get(word.lower(), word)


# OmegaConf's loader: PyYAML's with its floats mended, without dates, and with an error for a key that stands twice.
_LOADER = get_yaml_loader()
_LOADER.add_constructor(_BOOLEAN_TAG, _boolean_or_word)
