"""Overrides to a configuration, with Hydra."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsys.config.overrides import config_dir, normalise
from rlsys.config.schema import Config
from rlsys.errors import ConfigError


def load_config(overrides: Sequence[str]) -> Config:
    """The run that `overrides` describe, without running it."""
    return to_config(composed(overrides))


def composed(overrides: Sequence[str]) -> DictConfig:
    """The same before it is turned into dataclasses. Raises ConfigError for what Hydra does not take."""
    from hydra import compose, initialize_config_dir
    from hydra.errors import HydraException

    register_schema()
    try:
        with initialize_config_dir(str(config_dir()), version_base="1.3"):
            return compose("config", overrides=normalise(overrides))
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error)) from error


def to_config(config: DictConfig) -> Config:
    """Composed configuration to dataclasses."""
    return cast(Config, OmegaConf.to_object(config))


def register_schema() -> None:
    """Give Hydra the dataclasses: types and defaults."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)
