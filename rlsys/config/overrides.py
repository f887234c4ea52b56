"""Command-line overrides: unknown keys refused with the nearest match, options of functions let through."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlsys.config.option import options
from rlsys.config.schema import Config
from rlsys.errors import ConfigError, nearest

HYDRA_PREFIX = "hydra"
OPEN_NODES = tuple(option.key for option in options(Config()) if option.is_open)
SOURCES = ("data.train", "data.eval")
FILE_SUFFIXES = (".yaml", ".yml")


def config_dir() -> Path:
    """The folder of Hydra groups: beside the package in a source tree, inside it when installed."""
    package = Path(__file__).resolve().parents[1]
    source = package.parent / "configs"
    return source if source.is_dir() else package / "configs"


def groups(folder: Path) -> list[str]:
    """Names of the configuration groups."""
    return sorted(path.name for path in folder.iterdir() if path.is_dir())


def known_keys() -> list[str]:
    """Every key of the schema, dotted."""
    keys: list[str] = []

    def walk(node: DictConfig, prefix: str) -> None:
        for name in node:
            key = f"{prefix}{name!s}"
            keys.append(key)
            child = node._get_node(name)
            if isinstance(child, DictConfig) and key not in OPEN_NODES:
                walk(child, f"{key}.")

    walk(OmegaConf.structured(Config), "")
    return keys


def normalise(arguments: Sequence[str]) -> list[str]:
    """Check every override; `algorithm.policy_loss.clip_low=0.1` and the like become additions, as Hydra wants.

    `experiment=path/to/file.yaml` takes a file outside `configs/`: it is registered with Hydra under its name.
    Raises ConfigError with the nearest match for an unknown key, group or experiment.
    """
    known, folder = set(known_keys()), config_dir()
    checked = [_normalise_one(argument, known, folder) for argument in arguments]
    return [part for argument in checked for part in _whole(argument)]


def flags_first(arguments: Sequence[str]) -> list[str]:
    """Hydra's flags before all overrides: its parser takes overrides in one piece only."""
    overrides = [a for a in arguments if not a.startswith("-") and ("=" in a or a.startswith(("~", "+")))]
    return [a for a in arguments if a not in overrides] + overrides


def _normalise_one(argument: str, known: set[str], folder: Path) -> str:
    if argument.startswith("-") or "=" not in argument:
        return argument
    key, _, value = argument.partition("=")
    bare = key.lstrip("+~").partition("@")[0]
    if bare.partition(".")[0].partition("/")[0] == HYDRA_PREFIX:
        return argument
    if bare == "experiment" and any(part.endswith(FILE_SUFFIXES) for part in value.split(",")):
        return f"{key}={','.join(_experiment(part, folder) for part in value.split(','))}"
    if bare in groups(folder):
        _check_choice(bare, value, folder)
        return argument
    node = next((node for node in OPEN_NODES if bare.startswith(f"{node}.")), None)
    if node is not None:
        return f"++{key.lstrip('+')}={value}" if not key.startswith("~") else argument
    if bare not in known:
        raise ConfigError(f"unknown configuration key '{bare}': {nearest(bare, [*known, *groups(folder)])}")
    return argument


def _whole(argument: str) -> list[str]:
    """A source of data replaces what was there. Hydra would merge two mappings, and not put a list for one."""
    key, _, value = argument.partition("=")
    if key in SOURCES and value.startswith(("{", "[")) and not _is_sweep(value):
        return [f"{key}=null", argument]
    return [argument]


def _is_sweep(value: str) -> bool:
    """Whether commas outside brackets separate several values."""
    depth = 0
    for character in value:
        depth += (character in "[{(") - (character in "]})")
        if character == "," and depth == 0:
            return True
    return False


def _experiment(choice: str, folder: Path) -> str:
    if choice.endswith(FILE_SUFFIXES):
        return _registered(choice)
    _check_choice("experiment", choice, folder)
    return choice


def _registered(file: str) -> str:
    """Make an experiment file known to Hydra; returns the name it has there."""
    from hydra.core.config_store import ConfigStore

    path = Path(file.strip("\"'")).expanduser()
    if not path.is_file():
        raise ConfigError(f"experiment={file}: no such file: {path.resolve()}")
    try:
        content = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException) as error:
        raise ConfigError(f"experiment={file} is not YAML that can be read: {error}") from error
    if not isinstance(content, DictConfig):
        raise ConfigError(f"experiment={file} holds {type(content).__name__}, not a mapping from keys to values")
    name = re.sub(r"\W+", "_", path.name.partition(".")[0]) or "experiment"
    if (config_dir() / "experiment" / f"{name}.yaml").is_file():
        name = f"{name}_file"  # Hydra would take its namesake of ours
    ConfigStore.instance().store(name=name, group="experiment", node=content, package="_global_", provider=str(path))
    return name


def _check_choice(group: str, value: str, folder: Path) -> None:
    if "(" in value:  # a sweep such as choice(a,b): Hydra reads it, and refuses what is not there
        return
    choices = [path.stem for path in (folder / group).glob("*.yaml")]
    for choice in value.split(","):
        if choice == "null":
            raise ConfigError(f"{group}=null: a group is taken away with ~{group}")
        if choice not in choices:
            raise ConfigError(f"{group}={choice}: {nearest(choice, choices)} (known: {', '.join(sorted(choices))})")
