"""Which project a recipe was written for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rlsys.commands.importers.dialects import axolotl, easyr1, open_r1, openrlhf, trl
from rlsys.commands.importers.options import Dialect, version_key
from rlsys.commands.importers.recipe_file import RecipeFile
from rlsys.commands.importers.translate import spellings
from rlsys.config.dotted import flatten
from rlsys.errors import ConfigError, nearest

DIALECTS: dict[str, Dialect] = {
    module.DIALECT.name: module.DIALECT for module in (trl, open_r1, axolotl, easyr1, openrlhf)
}
PROGRAMS = {
    "verl.trainer": "easyr1",
    "openrlhf.": "openrlhf",
    "open_r1": "open-r1",
    "trl ": "trl",
    "axolotl": "axolotl",
}
"""What a script starts, and whose it is."""


@dataclass(frozen=True)
class Choice:
    """A dialect with the version that its defaults are read at, and why these."""

    dialect: Dialect
    version: str
    because: str


def choose(source: RecipeFile, dialect: str | None, version: str | None) -> Choice:
    """The dialect asked for, or the one that the recipe's options are from. Raises ConfigError when neither tells."""
    if dialect is None:
        found, because = _guess(source)
    elif dialect in DIALECTS:
        found, because = DIALECTS[dialect], "as asked for"
    else:
        raise ConfigError(f"--dialect {dialect}: {nearest(dialect, DIALECTS)} (known: {', '.join(DIALECTS)})")
    read_at = _version(found, version)
    asked = f", asked for as {version}" if version not in (None, read_at) else ""
    origin = "its default here" if version is None else f"the newest known up to it{asked}" if asked else "as asked for"
    return Choice(found, read_at, f"{because}; defaults of {found.versions_of} {read_at}, {origin}")


def options_of(source: RecipeFile, dialect: Dialect) -> dict[str, Any]:
    """The recipe's options by the names that the dialect knows."""
    return flatten(source.tree, spellings(dialect))


def _version(dialect: Dialect, asked: str | None) -> str:
    if asked is None:
        return dialect.default_version
    try:
        wanted = version_key(asked)
    except ValueError:
        raise ConfigError(f"--version {asked}: not a version; known of {dialect.name}: {_listed(dialect)}") from None
    known = [version for version in dialect.versions if version_key(version) <= wanted]
    if not known:
        raise ConfigError(f"--version {asked}: older than any known of {dialect.versions_of}: {_listed(dialect)}")
    return known[-1]


def _listed(dialect: Dialect) -> str:
    return ", ".join(dialect.versions)


def _guess(source: RecipeFile) -> tuple[Dialect, str]:
    for start, name in PROGRAMS.items():
        if start in source.program:
            return DIALECTS[name], f"guessed: the script starts {source.program}"
    scores = {name: _marks(source, dialect) for name, dialect in DIALECTS.items()}
    if scores["open-r1"]:  # its recipes have TRL's options too
        scores["open-r1"] += scores["trl"]
    best = max(scores, key=lambda name: len(scores[name]))
    if not scores[best]:
        raise ConfigError(
            f"{source.files[0]}: cannot tell whose recipe this is from its options; say so with --dialect "
            f"{'|'.join(DIALECTS)}"
        )
    own = [mark for mark in scores[best] if best != "open-r1" or mark not in scores["trl"]]
    return DIALECTS[best], f"guessed: it sets {', '.join(own[:3])}"


def _marks(source: RecipeFile, dialect: Dialect) -> list[str]:
    names = {**source.tree, **options_of(source, dialect)}
    found = [mark for mark in dialect.unique_options if mark in names]
    return found + [f"the reward '{reward}'" for reward in _rewards(names) if reward in dialect.unique_rewards]


def _rewards(names: Mapping[str, Any]) -> list[str]:
    rewards = names.get("reward_funcs") or []
    return [str(reward) for reward in ([rewards] if isinstance(rewards, str) else rewards)]
