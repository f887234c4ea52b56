"""The choice of the dialect that a recipe is written in."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from rlsys.commands.importers.dialects import axolotl, easyr1, open_r1, openrlhf, trl
from rlsys.commands.importers.dialects.shared import listed
from rlsys.commands.importers.options import Dialect, version_key
from rlsys.commands.importers.recipe_file import RecipeFile
from rlsys.commands.importers.translate import spellings
from rlsys.config.dotted import flatten
from rlsys.errors import ConfigError, nearest

DIALECTS: dict[str, Dialect] = {
    module.DIALECT.name: module.DIALECT for module in (trl, open_r1, axolotl, easyr1, openrlhf)
}
# What a script starts, and whose program that is.
PROGRAMS = {
    "verl.trainer": "easyr1",
    "openrlhf.": "openrlhf",
    "open_r1": "open-r1",
    "trl ": "trl",
    "axolotl": "axolotl",
}


@dataclass(frozen=True)
class Choice:
    """A dialect with the version that its defaults are read at, and why these."""

    dialect: Dialect
    version: str
    because: str


def choose(source: RecipeFile, dialect: str | None, version: str | None) -> Choice:
    """Return the dialect asked for, or the one whose options the recipe has. Raises ConfigError when none can be told.

    `version` is the version of that project for which the recipe was written: the newest known up to it is taken.
    """
    if dialect is not None and dialect not in DIALECTS:
        raise ConfigError(f"--dialect {dialect}: {nearest(dialect, DIALECTS)} (known: {', '.join(DIALECTS)})")
    found, because = _guess(source) if dialect is None else (DIALECTS[dialect], "as asked for")
    if version is None:
        read_at, origin = found.default_version, "the default"
    else:
        read_at = _newest_up_to(version, found)
        origin = "as asked for" if version == read_at else f"the newest known up to {version}"
    return Choice(found, read_at, f"{because}; defaults of {found.versions_of} {read_at}, {origin}")


def options_of(source: RecipeFile, dialect: Dialect) -> dict[str, Any]:
    """Return the recipe's options by the names that the dialect knows."""
    return flatten(source.tree, spellings(dialect))


def _newest_up_to(asked: str, dialect: Dialect) -> str:
    known = f"known of {dialect.versions_of}: {', '.join(dialect.versions)}"
    try:
        return [version for version in dialect.versions if version_key(version) <= version_key(asked)][-1]
    except ValueError:
        raise ConfigError(f"--version {asked}: not a version; {known}") from None
    except IndexError:
        raise ConfigError(f"--version {asked}: older than any {known}") from None


def _guess(source: RecipeFile) -> tuple[Dialect, str]:
    for start, name in PROGRAMS.items():
        if start in source.program:
            return DIALECTS[name], f"guessed: the script starts {source.program}"
    evidence = {name: _evidence(source, dialect) for name, dialect in DIALECTS.items()}
    # open-r1's recipes have TRL's options too.
    weight = {name: len(found) for name, found in evidence.items()}
    weight["open-r1"] += weight["trl"] if weight["open-r1"] else 0
    best = max(weight, key=lambda name: weight[name])
    if not weight[best]:
        raise ConfigError(
            f"{source.files[0]}: its options do not show which project the recipe is for: give --dialect "
            f"{'|'.join(DIALECTS)}"
        )
    return DIALECTS[best], f"guessed: it sets {', '.join(evidence[best][:3])}"


def _evidence(source: RecipeFile, dialect: Dialect) -> list[str]:
    """Return what the recipe sets that only this project has."""
    names = {**source.tree, **options_of(source, dialect)}
    rewards = [str(reward) for reward in listed(names.get("reward_funcs")) if str(reward) in dialect.unique_rewards]
    return [name for name in dialect.unique_options if name in names] + [f"the reward '{name}'" for name in rewards]
