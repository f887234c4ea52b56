"""A run's folder on disk, finished or not, as the commands read it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlsys.config.compose import to_config
from rlsys.config.overrides import key_of
from rlsys.config.schema import Config
from rlsys.config.written import as_written
from rlsys.errors import ConfigError, DataError, RlsysError, nearest
from rlsys.run_folder import layout
from rlsys.run_folder.checkpoint import checkpoint_entries, checkpoints, damage_of, newest, step_of
from rlsys.run_folder.jsonl import json_rows, read_metrics
from rlsys.run_folder.whole_file import write_whole

# Folder names that need their parent's name beside them: a start time, or the number of a sweep's job.
NUMBERED = re.compile(r"(\d{8}-\d{6}|\d+)(-\d+)?")
# Groups whose name differs from the configuration node that they fill.
GROUP_NODES = {"reward": "rewards"}


@dataclass(frozen=True)
class RunFolder:
    """One run's folder: its configuration, metrics, rollouts, timelines and checkpoints.

    Files are read when asked for. Configuration comes in two forms: `config()` insists on a file of this version,
    `options` takes any mapping, so that a report can also show an older run.
    """

    path: Path

    @classmethod
    def open(cls, path: str | Path) -> RunFolder:
        """Return the run folder at `path`.

        Raises:
            RlsysError: there is no such folder; the message names the most similar one beside it.
        """
        path = Path(path).expanduser().resolve()
        if not path.is_dir():
            neighbours = [folder.name for folder in path.parent.glob("*/")] if path.parent.is_dir() else []
            raise RlsysError(f"{path}: no such folder; {nearest(path.name, neighbours)}")
        return cls(path)

    @classmethod
    def create(cls, path: Path, config: Config, tokenizer: Any, *, start: str = "") -> RunFolder:
        """Make the folder and describe the run in it, unless it holds the description of an earlier start.

        That one is the run's until another start has succeeded, and then calls `describe`.
        """
        path.mkdir(parents=True, exist_ok=True)
        folder = cls(path)
        if not cls.is_run(path):
            folder.describe(config, tokenizer, start=start)
        return folder

    def describe(self, config: Config, tokenizer: Any, *, start: str = "") -> None:
        """Write what readers need besides metrics.

        Args:
            config: the run's configuration.
            tokenizer: the policy's.
            start: the table of what the run uses, as text.
        """
        write_whole(self.path / layout.CONFIG, OmegaConf.to_yaml(OmegaConf.create(asdict(as_written(config)))))
        write_whole(self.path / layout.START, start)
        tokenizer.save_pretrained(self.path / layout.TOKENIZER)

    @staticmethod
    def is_run(path: str | Path) -> bool:
        """Return whether `path` is the folder of a run: one with a config.yaml."""
        return (Path(path).expanduser() / layout.CONFIG).is_file()

    @property
    def name(self) -> str:
        """The folder's name, with its parent's name before it if it is only a time or a number."""
        path = self.path
        name = f"{path.parent.name}/{path.name}" if NUMBERED.fullmatch(path.name) else path.name
        return name.encode("utf-8", "replace").decode()  # a file name may hold bytes that are not UTF-8

    @property
    def config_file(self) -> Path:
        """The file with the run's configuration."""
        return self.path / layout.CONFIG

    @property
    def metrics_file(self) -> Path:
        """The file with one row of metrics per step."""
        return self.path / layout.METRICS

    @property
    def tokenizer(self) -> Path:
        """The folder of the run's tokenizer."""
        return self.path / layout.TOKENIZER

    @cached_property
    def options(self) -> dict[str, Any]:
        """The configuration as plain values, empty if the run left none.

        Raises:
            DataError: config.yaml cannot be read, or is not a mapping.
        """
        file = self.config_file
        if not file.is_file():
            return {}
        try:
            # resolve=False: environment variables of the machine that ran it may not exist here.
            options = OmegaConf.to_container(OmegaConf.load(file), resolve=False)
        except (YAMLError, UnicodeDecodeError, OSError) as error:
            raise DataError(f"{file} is not readable YAML: {error}") from error
        if not isinstance(options, dict):
            raise DataError(f"{file} is not the configuration of a run: it must be a mapping of options")
        return {str(key): value for key, value in options.items()}

    def typed_config(self) -> DictConfig:
        """Return the configuration as a typed node, to which overrides can be applied.

        Raises:
            ConfigError: there is no config.yaml, or one with options that this version does not know.
        """
        if not self.is_run(self.path):
            raise ConfigError(f"{self.path} is not the folder of a run: it has no config.yaml")
        try:
            return cast(DictConfig, OmegaConf.merge(OmegaConf.structured(Config), self.options))
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"{self.config_file} was not written by this version of rlsys: {str(error).splitlines()[0]}"
            ) from error

    def config(self) -> Config:
        """Return the configuration. Raises ConfigError as `typed_config` does."""
        return to_config(self.typed_config())

    @cached_property
    def rows(self) -> list[dict[str, float | None]]:
        """The metrics of each step, in order of steps; None stands for NaN, infinity and what is not a number.

        Raises:
            RlsysError: there is no metrics.jsonl, or no step in it yet.
            DataError: a line is not a row of metrics.
        """
        file = self.metrics_file
        if not file.is_file():
            raise RlsysError(f"{file} is missing: give the folder of a run, the one that holds its config.yaml")
        rows = read_metrics(file)
        if not rows:
            raise RlsysError(f"{file} is empty: the run has not finished a step yet")
        return rows

    @property
    def warnings(self) -> list[tuple[int, str]]:
        """Step and text of every alarm. Raises DataError as `rows` does."""
        file = self.path / layout.WARNINGS
        return [(int(row["step"]), str(row["text"])) for _, row in json_rows(file)] if file.is_file() else []

    @property
    def paused_file(self) -> Path:
        """The file that is there while the run is paused, and holds why."""
        return self.path / layout.PAUSED

    @property
    def rollouts(self) -> list[Path]:
        """The files of sampled responses, in order of steps."""
        return sorted((self.path / layout.ROLLOUTS).glob("step-*.jsonl"), key=step_of)

    @property
    def timelines(self) -> list[Path]:
        """The timeline files, one for each time the run was started or resumed, in order of steps."""
        return sorted(self.path.glob(f"{layout.TIMELINE}*.json"), key=step_of)

    def checkpoint(self, step: int | None = None) -> Path:
        """Return the folder of the newest whole checkpoint, or of the one after `step`.

        Raises:
            ConfigError: there is none, or none after `step`; the message lists those there are. Or it is damaged.
        """
        if step is not None:
            found = {step_of(folder): folder for folder in checkpoint_entries(self.path)}
            if step not in found:
                steps = ", ".join(str(step_of(folder)) for folder in checkpoints(self.path)) or "none"
                raise ConfigError(f"{self.path} has no checkpoint of step {step}; there are: {steps}")
            if (damage := damage_of(found[step], content=True)) is not None:
                raise ConfigError(f"{found[step]} cannot be used: {damage}; leave out --step for the newest whole one")
            return found[step]
        folder = newest(self.path)
        if folder is None:
            raise ConfigError(
                f"{self.path} has no checkpoint yet: one is written every checkpoint.every_s seconds, after every N "
                "steps with checkpoint.every=N, and after the last step (checkpoint.last=true)"
            )
        return folder


def check_run_dir(run_dir: Path, resume: str) -> None:
    """Raise ConfigError when the run would overwrite an earlier one."""
    if resume == "never" and (run_dir / layout.METRICS).exists():
        raise ConfigError(
            f"run_dir {run_dir} already holds a run: choose another run_dir, or set resume=auto to continue it"
        )


def apply_overrides(base: DictConfig, changed: DictConfig, overrides: Sequence[str]) -> DictConfig:
    """Return a run's configuration `base` with the keys that `overrides` name taken from `changed`.

    Whole nodes are taken first, for groups such as `data=gsm8k`, then single keys such as `data.eval_limit=3`.

    Args:
        base: the run's own configuration.
        changed: a configuration composed from the defaults and `overrides`.
        overrides: what the user gave on the command line.

    Raises:
        ConfigError: an experiment is named, which would replace the run's own configuration.
    """
    result = OmegaConf.create(base)
    nodes = [GROUP_NODES.get(key, key) for key in map(key_of, overrides)]
    # Nodes without a dot are groups: they come first, so that a key inside of them is not replaced by its group.
    for node in sorted(nodes, key=lambda name: "." in name):
        if node == "experiment":
            raise ConfigError("experiment=... cannot be given with a run's folder: the run has its own configuration")
        # Replaced, not merged: a mapping on the command line is the whole value. force_add, because mappings such as a
        # function's options may have keys that the run's own lack.
        OmegaConf.update(result, node, OmegaConf.select(changed, node), merge=False, force_add=True)
    return result
