"""Files of other projects to options by dotted name: YAML, JSON, shell scripts, lists of flags."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlsys.commands.importers.shell_script import Call, calls
from rlsys.config.dotted import put
from rlsys.errors import ConfigError

BASE_KEYS = ("config",)
"""Arguments that name a YAML file beneath the others: `--config FILE` of TRL and open-r1, `config=FILE` of EasyR1."""


@dataclass(frozen=True)
class RecipeFile:
    """A recipe as it was written."""

    tree: dict[str, Any]  # nested as in the file; later arguments replace earlier values
    files: list[Path] = field(default_factory=list)  # all that were read
    program: str = ""  # what a script starts, such as `verl.trainer.main`


def read(path: Path) -> RecipeFile:
    """Read a recipe. Raises ConfigError when the file is not there or cannot be understood."""
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".json" or text.lstrip().startswith("{"):
        return RecipeFile(_json(path, text), [path])
    if path.suffix in (".yaml", ".yml"):
        return RecipeFile(_yaml(path), [path])
    found = calls(text, str(path))
    if not found:
        raise ConfigError(
            f"{path}: no flags (--name value) and no overrides (name=value) in it; a recipe is a YAML or JSON file, or "
            "a shell script or list of flags"
        )
    return _from_call(max(found, key=lambda call: len(call.arguments)), path)


def _json(path: Path, text: str) -> dict[str, Any]:
    try:
        tree = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is not JSON: {error}") from error
    return _mapping(tree, path)


def _yaml(path: Path) -> dict[str, Any]:
    try:
        tree = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (YAMLError, OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"{path} is not YAML that can be read: {error}") from error
    return _mapping(tree, path)


def _mapping(tree: Any, path: Path) -> dict[str, Any]:
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {type(tree).__name__}, not a mapping from options to values")
    return {str(key): value for key, value in tree.items()}


def _from_call(call: Call, path: Path) -> RecipeFile:
    tree: dict[str, Any] = {}
    files = [path]
    for key in BASE_KEYS:
        if key in call.arguments:
            base = _beside(str(call.arguments[key]), path)
            tree, files = _yaml(base), [path, base]
    for name, value in call.arguments.items():
        if name not in BASE_KEYS:
            try:
                put(tree, name, value)
            except ValueError as error:
                raise ConfigError(f"{path}: {error}") from error
    return RecipeFile(tree, files, call.program)


def _beside(name: str, script: Path) -> Path:
    """A file that a script names, relative to where it was meant to run: here, or a folder above the script."""
    places: Iterable[Path] = [Path.cwd(), *script.resolve().parents]
    for place in places:
        if (place / name).is_file():
            return place / name
    raise ConfigError(
        f"{script} builds on '{name}', which is neither under {Path.cwd()} nor beside or above the script: run the "
        "command in the folder where the script is run, or put the file there"
    )
