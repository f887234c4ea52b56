"""A run that has been started: its folder, configuration and checkpoints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.run_folder.checkpoint import checkpoints

GROUP_NODES = {"reward": "rewards"}
"""Where a group's name and the node it fills differ."""


@dataclass(frozen=True)
class FinishedRun:
    """One run folder."""

    folder: Path

    @staticmethod
    def is_one(path: str | Path) -> bool:
        """Whether `path` is the folder of a run."""
        return (Path(path).expanduser() / "config.yaml").is_file()

    def composed(self) -> DictConfig:
        """The run's configuration. Raises ConfigError for one that this version cannot read."""
        path = self.folder / "config.yaml"
        if not path.is_file():
            raise ConfigError(f"{self.folder} is not the folder of a run: it has no config.yaml")
        try:
            return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Config), OmegaConf.load(path)))
        except OmegaConfBaseException as error:
            raise ConfigError(f"{path} is not of this version of rlsys: {str(error).splitlines()[0]}") from error

    def checkpoint(self, step: int | None = None) -> Path:
        """The newest checkpoint, or that of `step`. Raises ConfigError with those that there are."""
        found = {int(folder.name.removeprefix("step-")): folder for folder in checkpoints(self.folder)}
        if not found:
            raise ConfigError(
                f"{self.folder} has no checkpoint: one comes after the last step, and every N with checkpoint.every=N"
            )
        if step is None:
            return found[max(found)]
        if step not in found:
            raise ConfigError(
                f"{self.folder} has no checkpoint of step {step}; there are: {', '.join(map(str, found))}"
            )
        return found[step]


def overridden(base: DictConfig, changed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """`base` with what `overrides` name taken from `changed`, a configuration composed with them: whole nodes for
    groups (`data=gsm8k`), then single keys."""
    result = OmegaConf.create(base)
    keys = [override.lstrip("+~").partition("=")[0].partition("@")[0] for override in overrides]
    nodes = [GROUP_NODES.get(key, key) for key in keys]
    for node in sorted(nodes, key=lambda name: "." in name):
        if node == "experiment":
            raise ConfigError("experiment=... makes a run of its own: a finished one has its configuration already")
        OmegaConf.update(result, node, OmegaConf.select(changed, node), merge=False, force_add=True)
    return result
