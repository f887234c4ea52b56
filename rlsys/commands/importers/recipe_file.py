"""Files of other projects to options by dotted name: YAML, JSON, shell scripts, lists of flags."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import partial
from json import JSONDecodeError
from pathlib import Path
from typing import Any

from rlsys.commands.importers.programs import described, training_call
from rlsys.commands.importers.recipe_yaml import load_yaml
from rlsys.commands.importers.shell_script import Call, calls
from rlsys.config.dotted import put
from rlsys.config.paths import read_text
from rlsys.errors import ConfigError

# The argument that names a YAML file beneath the others: `--config FILE` of TRL and open-r1, `config=FILE` of EasyR1.
BASE_KEY = "config"
# Processes that a launcher starts: of accelerate, of torchrun (times its nodes), of DeepSpeed.
PROCESSES = ("num_processes", "nproc_per_node", "num_gpus")


@dataclass(frozen=True)
class RecipeFile:
    """A recipe as it was written."""

    tree: dict[str, Any]  # nested as in the file; later arguments replace earlier values
    files: list[Path] = field(default_factory=list)  # all that were read
    program: str = ""  # what a script starts, such as `verl.trainer.main`
    remarks: list[str] = field(default_factory=list)  # what else the file holds and was not read


def read(path: Path) -> RecipeFile:
    """Read a recipe. Raises ConfigError when the file is not there or cannot be understood."""
    if not path.is_file():
        raise ConfigError(f"no such file: {path}")
    if path.suffix == ".py":
        raise ConfigError(
            f"{path} is a Python script, which is not run to be read: write the arguments of its config (such as "
            "GRPOConfig) into a YAML file, one `name: value` per line, and import that"
        )
    text = _text(path)
    if path.suffix in (".yaml", ".yml", ".json") or text.lstrip().startswith("{"):
        return RecipeFile(_mapping(path, text), [path])
    found = calls(text, str(path))
    if not any(call.arguments for call in found):
        raise ConfigError(
            f"{path}: no flags (--name value) and no overrides (name=value) in it; a recipe is a YAML or JSON file, or "
            "a shell script or list of flags"
        )
    programs = [call for call in found if call.program] or found
    chosen = training_call(programs, path)
    others = [described(call) for call in programs if call is not chosen]
    remarks = [f"read from {described(chosen)}; not read: {', '.join(others)}"] if others else []
    return _from_call(chosen, path, remarks)


def _text(path: Path) -> str:
    text = read_text(path, "recipe")
    if not text.strip() or "\0" in text:
        raise ConfigError(f"{path} is {'empty' if not text.strip() else 'no text file: it holds a zero byte'}")
    return text


def _mapping(path: Path, text: str) -> dict[str, Any]:
    is_json = path.suffix == ".json" or (path.suffix not in (".yaml", ".yml") and text.lstrip().startswith("{"))
    try:
        tree = json.loads(text, object_pairs_hook=partial(_once, path)) if is_json else load_yaml(text, path)
    except (JSONDecodeError, RecursionError) as error:
        raise ConfigError(f"{path} is neither YAML nor JSON that can be read: {error}") from error
    if not isinstance(tree, dict):
        raise ConfigError(f"{path} holds {type(tree).__name__}, not a mapping from options to values")
    return {str(key): value for key, value in tree.items()}


def _once(path: Path, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = {name for name in names if names.count(name) > 1}
    if twice:
        raise ConfigError(f"{path} sets {', '.join(sorted(twice))} more than once: keep one of them")
    return dict(pairs)


def _from_call(call: Call, path: Path, remarks: list[str]) -> RecipeFile:
    arguments = _processes(call.launcher, path) | call.arguments
    name = _base_name(arguments)
    base = _beside(name, path) if name else None
    tree = _mapping(base, _text(base)) if base else {}
    try:
        for name, value in arguments.items():
            put(tree, name, value)
    except ValueError as error:
        raise ConfigError(f"{path}: {error}") from error
    return RecipeFile(tree, [path, base] if base else [path], call.program, remarks)


def _base_name(arguments: dict[str, Any]) -> str | None:
    """Take the name of the file beneath the arguments out of them: `--config FILE`, or what Hydra's flags name."""
    folder, name = arguments.pop("config-path", None), arguments.pop("config-name", None)
    if BASE_KEY in arguments:
        return str(arguments.pop(BASE_KEY))
    if name is None or (folder in (None, "config") and str(name).startswith("ppo_")):  # verl's own, of its defaults
        return None
    return f"{folder or '.'}/{name}" + ("" if str(name).endswith((".yaml", ".yml")) else ".yaml")


def _processes(launcher: dict[str, Any], script: Path) -> dict[str, Any]:
    """Return the number of processes that a launcher is asked for, by a flag or by accelerate's file."""
    given = {name.replace("-", "_"): value for name, value in launcher.items()}
    if "config_file" in given and (file := _found(str(given["config_file"]), script)):
        given = _mapping(file, _text(file)) | given
    name = next((name for name in PROCESSES if name in given), None)
    if name is None:
        return {}
    nodes = given.get("nnodes", 1) if name == "nproc_per_node" else 1
    is_known = isinstance(given[name], int) and isinstance(nodes, int)
    return {"num_processes": given[name] * nodes if is_known else given[name]}


def _beside(name: str, script: Path) -> Path:
    """Find a file that a script names, relative to the current folder or to a folder above the script."""
    if found := _found(name, script):
        return found
    raise ConfigError(
        f"{script} builds on '{name}', which is neither under {Path.cwd()} nor beside or above the script: run the "
        "command in the folder where the script is run, or put the file there"
    )


def _found(name: str, script: Path) -> Path | None:
    folders = (Path.cwd(), *script.resolve().parents)
    return next((folder / name for folder in folders if (folder / name).is_file()), None)
