"""Hydra's groups and overrides to the dataclasses of `rlsys.config`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from omegaconf import DictConfig, OmegaConf

from rlsys.config import Config


def load_config(overrides: Sequence[str]) -> Config:
    """The run that `overrides` describe, without running it."""
    from hydra import compose, initialize_config_dir

    from rlsys.overrides import config_dir, normalise

    register_schema()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return to_config(compose("config", overrides=normalise(overrides)))


def to_config(composed: DictConfig) -> Config:
    """Composed configuration to dataclasses."""
    return cast(Config, OmegaConf.to_object(composed))


def register_schema() -> None:
    """Tell Hydra of `Config`, which `configs/config.yaml` begins with."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)
