"""Composing overrides, presets and defaults into the configuration of a run, with Hydra."""

from __future__ import annotations

import contextlib
import functools
import os
import re
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsys.config.overrides import config_dir, normalise, wrong_type
from rlsys.config.schema import Config
from rlsys.config.written import remember_environment
from rlsys.errors import ConfigError

# Hydra's message for a value that the schema's type refuses.
MERGE_ERROR = re.compile(r"Error merging override \+*(?P<key>[\w.@]+)=(?P<value>(?s:.*))")
# Hydra's advice for a key that is not there; no option of a run can be appended.
APPENDING = re.compile(r"\nTo append to your config use .*")


@dataclass(frozen=True)
class Job:
    """One run that a command line asks for."""

    config: Config
    name: str = "run"  # name of its experiment; the default run folder is `name/started`
    number: int | None = None  # in a sweep
    overrides: tuple[str, ...] = ()  # of this run, as Hydra lists them
    started: str = field(default_factory=lambda: time.strftime("%Y%m%d-%H%M%S"))  # time of its start


def load_config(overrides: Sequence[str]) -> Config:
    """Return the configuration that `overrides` describe. Raise ConfigError for what cannot be composed."""
    return to_config(compose(overrides))


def compose(overrides: Sequence[str]) -> DictConfig:
    """Return the same as `load_config` before it is turned into dataclasses."""
    from hydra import compose, initialize_config_dir

    _register_schema()
    with _as_config_errors(), initialize_config_dir(str(config_dir()), version_base="1.3"):
        return compose("config", overrides=normalise(overrides))


def to_config(config: DictConfig) -> Config:
    """Turn a composed configuration into dataclasses, which remember what came from the environment."""
    with _as_config_errors():
        unresolved = OmegaConf.to_container(config, resolve=False)
        return resolve_dtypes(cast(Config, remember_environment(OmegaConf.to_object(config), unresolved)))


def resolve_dtypes(config: Config) -> Config:
    """Replace the dtype `auto` by what it means on the run's devices: everything after this reads a number format."""
    for ranks in (config.learner, config.critic):
        if ranks.dtype == "auto":
            ranks.dtype = "bfloat16" if config.cluster.num_gpus > 0 else "float32"
    return config


def compose_jobs(
    overrides: Sequence[str], *, flags: Sequence[str] = (), sweeps: bool = False, folders: Sequence[str] = ()
) -> list[Job]:
    """Return the runs that a command line describes: one, or all of a sweep. Raise ConfigError before any has started.

    Hydra's main reads its own flags. Those that only print, such as `--cfg job`, print and describe no run. It composes
    the runs and does no more; the caller trains them after it has returned, so that Hydra handles no error of a run.

    Args:
        overrides: as on the command line.
        flags: Hydra's flags and their values, as on the command line.
        sweeps: whether the flags ask for a sweep (`--multirun`).
        folders: folders of presets that the flags name (`--config-dir`, `--config-path`).
    """
    import hydra
    from hydra.core.hydra_config import HydraConfig

    found: list[Job] = []

    def collect(config: DictConfig) -> None:
        # Converted here, because `${hydra:...}` can be resolved only while Hydra runs the job.
        run = HydraConfig.get()
        number = run.job.num if run.mode.name == "MULTIRUN" else None
        name = run.runtime.choices.get("experiment") or "run"
        found.append(Job(to_config(config), name, number, tuple(run.overrides.task)))

    # Hydra has two switches for a sweep: the flag, and this key.
    sweeps = sweeps or any(override.startswith("hydra.mode=") for override in overrides)
    checked = normalise(overrides, sweeps=sweeps, folders=folders)
    _register_schema()
    with tempfile.TemporaryDirectory() as folder, _as_config_errors():
        if sweeps:  # Hydra writes a multirun.yaml, which nobody needs: every run's folder has its config.yaml
            checked = [f"hydra.sweep.dir='{folder}'", *checked]
        with _main_raises(["rlsys train", *flags, *checked]):
            hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(collect)()
    if sweeps and not found:
        raise ConfigError("a sweep needs Hydra's basic launcher, which composes in this process: remove hydra/launcher")
    return [replace(job, started=found[0].started) for job in found]  # a sweep's runs share the folder


@functools.cache  # Hydra keeps them, and converting them takes a third of the time of composing
def _register_schema() -> None:
    """Give Hydra the dataclasses, with their types and defaults."""
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


@contextlib.contextmanager
def _as_config_errors() -> Iterator[None]:
    """Turn the errors of Hydra and OmegaConf into ConfigError, with their cause and the key."""
    from hydra.errors import HydraException

    try:
        yield
    except HydraException as error:
        if found := MERGE_ERROR.match(str(error)):
            raise ConfigError(wrong_type(*found.group("key", "value"))) from error
        cause = error.__cause__ if isinstance(error.__cause__, OmegaConfBaseException) else ""
        said = APPENDING.sub("", str(error).strip())
        raise ConfigError(f"{said}: {cause}".partition("\n    full_key")[0].rstrip(": ")) from error
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if getattr(error, "full_key", None) else ""
        raise ConfigError(key + str(error).partition("\n")[0]) from error


@contextlib.contextmanager
def _main_raises(argv: list[str]) -> Iterator[None]:
    """Let `hydra.main` read `argv` and raise its errors; by itself it prints them and exits."""
    before, full = sys.argv, os.environ.get("HYDRA_FULL_ERROR")
    sys.argv, os.environ["HYDRA_FULL_ERROR"] = argv, "1"
    try:
        yield
    finally:
        sys.argv = before
        if full is None:
            del os.environ["HYDRA_FULL_ERROR"]
        else:
            os.environ["HYDRA_FULL_ERROR"] = full
