"""Command-line overrides: unknown keys refused with the nearest match, options of functions let through."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from rlsys.config import OPEN_NODES, Config
from rlsys.errors import ConfigError, nearest

HYDRA_PREFIX = "hydra"


def config_dir() -> Path:
    """The folder of Hydra groups: beside the package in a source tree, inside it when installed."""
    source = Path(__file__).resolve().parent.parent / "configs"
    return source if source.is_dir() else Path(__file__).resolve().parent / "configs"


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

    Raises ConfigError with the nearest match for an unknown key, group or experiment.
    """
    known, folder = set(known_keys()), config_dir()
    return [_normalise_one(argument, known, folder) for argument in arguments]


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
    if bare in groups(folder):
        _check_choice(bare, value, folder)
        return argument
    node = next((node for node in OPEN_NODES if bare.startswith(f"{node}.")), None)
    if node is not None:
        return f"++{key.lstrip('+')}={value}" if not key.startswith("~") else argument
    if bare not in known:
        raise ConfigError(f"unknown configuration key '{bare}': {nearest(bare, [*known, *groups(folder)])}")
    return argument


def _check_choice(group: str, value: str, folder: Path) -> None:
    if "(" in value:  # a sweep such as choice(a,b): Hydra reads it, and refuses what is not there
        return
    choices = [path.stem for path in (folder / group).glob("*.yaml")]
    for choice in value.split(","):
        if choice == "null":
            raise ConfigError(f"{group}=null: a group is taken away with ~{group}")
        if choice not in choices:
            raise ConfigError(f"{group}={choice}: {nearest(choice, choices)} (known: {', '.join(sorted(choices))})")
