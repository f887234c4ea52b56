"""Files of other projects to options by dotted name: YAML, JSON, shell scripts, lists of flags."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlsys.commands.importers.shell_script import Call, calls
from rlsys.config.dotted import put
from rlsys.errors import ConfigError

# The argument that names a YAML file beneath the others: `--config FILE` of TRL and open-r1, `config=FILE` of EasyR1.
BASE_KEY = "config"


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
    if path.suffix == ".py":
        raise ConfigError(
            f"{path} is a Python script, which is not run to be read: write the arguments of its config (such as "
            "GRPOConfig) into a YAML file, one `name: value` per line, and import that"
        )
    text = path.read_text(encoding="utf-8")
    if path.suffix in (".yaml", ".yml", ".json") or text.lstrip().startswith("{"):
        return RecipeFile(_mapping(path), [path])
    found = calls(text, str(path))
    if not found:
        raise ConfigError(
            f"{path}: no flags (--name value) and no overrides (name=value) in it; a recipe is a YAML or JSON file, or "
            "a shell script or list of flags"
        )
    return _from_call(max(found, key=lambda call: len(call.arguments)), path)


def _mapping(path: Path) -> dict[str, Any]:
    text = path.read_text(encoding="utf-8")
    is_json = path.suffix == ".json" or text.lstrip().startswith("{")
    try:
        tree = json.loads(text) if is_json else OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (JSONDecodeError, YAMLError, OmegaConfBaseException, OSError) as error:
        raise ConfigError(f"{path} is neither YAML nor JSON that can be read: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {type(tree).__name__}, not a mapping from options to values")
    return {str(key): value for key, value in tree.items()}


def _from_call(call: Call, path: Path) -> RecipeFile:
    arguments = dict(call.arguments)
    base = _beside(str(arguments.pop(BASE_KEY)), path) if BASE_KEY in arguments else None
    tree = _mapping(base) if base else {}
    try:
        for name, value in arguments.items():
            put(tree, name, value)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return RecipeFile(tree, [path, base] if base else [path], call.program)


def _beside(name: str, script: Path) -> Path:
    """Find a file that a script names, relative to the current folder or to a folder above the script."""
    for folder in (Path.cwd(), *script.resolve().parents):
        if (folder / name).is_file():
            return folder / name
    raise ConfigError(
        f"{script} builds on '{name}', which is neither under {Path.cwd()} nor beside or above the script: run the "
        "command in the folder where the script is run, or put the file there"
    )
