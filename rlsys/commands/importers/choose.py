"""The choice of the dialect that a recipe is written in, and of the version that its defaults are read at."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsys.commands.importers.dialects import axolotl, easyr1, open_r1, openrlhf, trl, verl
from rlsys.commands.importers.dialects.shared import listed
from rlsys.commands.importers.options import Dialect, default_at, version_key
from rlsys.commands.importers.other_recipes import other_training
from rlsys.commands.importers.programs import kind_of
from rlsys.commands.importers.recipe import ABSENT
from rlsys.commands.importers.recipe_file import RecipeFile
from rlsys.commands.importers.translate import spellings
from rlsys.config.dotted import flatten
from rlsys.config.written import remember_environment
from rlsys.errors import ConfigError, nearest

DIALECTS: dict[str, Dialect] = {
    module.DIALECT.name: module.DIALECT for module in (trl, open_r1, axolotl, easyr1, verl, openrlhf)
}
BY_REWARDS = (
    *trl.BY_REWARDS,
    "trl",
    "rl",
    "worker",
    "actor_rollout_ref",
    "advantage_estimator",
    "prompt_data",
    "remote_rm_url",
)


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
    for option, without in found.requires.items():
        if option not in options_of(source, found):
            raise ConfigError(f"{source.files[0]}: it does not set `{option}`, and without it {without}")
    if version is None:
        read_at, origin = _inferred(source, found)
    else:
        read_at = _newest_up_to(version, found)
        origin = "as asked for" if version == read_at else f"the newest known up to {version}"
    return Choice(found, read_at, f"{because}; defaults of {found.versions_of} {read_at}, {origin}")


def options_of(source: RecipeFile, dialect: Dialect) -> dict[str, Any]:
    """Return the recipe's options by the names that the dialect knows. Raises ConfigError for `${...}` of nothing."""
    names, tree = spellings(dialect), source.tree
    if dialect.interpolates:
        try:
            resolved = remember_environment(OmegaConf.to_container(OmegaConf.create(tree), resolve=True), tree)
        except OmegaConfBaseException as error:
            raise ConfigError(f"{source.files[0]}: {error}") from error
        assert isinstance(resolved, dict)
        tree = {str(key): value for key, value in resolved.items()}
    options = flatten(tree, names)
    if dialect.by_argparse:
        options = dict(_as_parsed(name, value, dialect) for name, value in options.items())
    if "num_processes" not in names:  # of a launcher
        options.pop("num_processes", None)
    return options


def _as_parsed(name: str, value: Any, dialect: Dialect) -> tuple[str, Any]:
    """Return a flag as transformers' parser takes it: with hyphens, or as `no_` before a switch that is on."""
    names, spelt = spellings(dialect), name.replace("-", "_")
    switch = spelt.removeprefix("no_")
    if value is True and spelt not in names and switch in names:
        return switch, False
    return (spelt if spelt in names else name), value


def _newest_up_to(asked: str, dialect: Dialect) -> str:
    known = f"known of {dialect.versions_of}: {', '.join(dialect.versions)}"
    try:
        limit = version_key(asked)  # `0.9` stands for the last release of 0.9
        return [version for version in dialect.versions if version_key(version)[: len(limit)] <= limit][-1]
    except ValueError:
        raise ConfigError(f"--version {asked}: not a version; {known}") from None
    except IndexError:
        raise ConfigError(f"--version {asked}: older than any {known}") from None


def _inferred(source: RecipeFile, dialect: Dialect) -> tuple[str, str]:
    """Return the version nearest to the default one that has every option of the recipe, and why it was taken."""
    names = spellings(dialect)
    given = {name: names[name] for name, value in options_of(source, dialect).items() if name in names}
    default = dialect.versions.index(dialect.default_version)
    older, newer = dialect.versions[: default + 1][::-1], dialect.versions[default + 1 :]
    reasons: list[str] = []
    for version in (*older, *newer):
        missing = [shown for shown, name in given.items() if default_at(dialect.options[name], version) is ABSENT]
        if not missing:
            return version, f"the nearest that has {', '.join(reasons)}" if reasons else "the default"
        reasons = reasons or missing
    return dialect.default_version, "the default"


def _guess(source: RecipeFile) -> tuple[Dialect, str]:
    kind = kind_of(source.program)
    if kind and kind.dialect:
        return DIALECTS[kind.dialect], f"guessed: the script starts {source.program}"
    evidence = {name: _evidence(source, dialect) for name, dialect in DIALECTS.items()}
    # open-r1's recipes have TRL's options too.
    weight = {name: len(found) for name, found in evidence.items()}
    weight["open-r1"] += weight["trl"] if weight["open-r1"] else 0
    best = max(weight, key=lambda name: weight[name])
    other = other_training({**source.tree, **flatten(source.tree)}, BY_REWARDS)
    if other:
        raise ConfigError(
            f"{source.files[0]}: it sets `{other[0]}`, which makes it a recipe of {other[1]}. Only recipes of training "
            "by rewards are read; give --dialect if it is one"
        )
    if not weight[best]:
        raise ConfigError(
            f"{source.files[0]}: its options do not show which project the recipe is for, or that it trains by "
            f"rewards: give --dialect {'|'.join(DIALECTS)} if it does"
        )
    return DIALECTS[best], f"guessed: it sets {', '.join(evidence[best][:3])}"


def _evidence(source: RecipeFile, dialect: Dialect) -> list[str]:
    """Return what the recipe sets that only this project has."""
    names = {**source.tree, **flatten(source.tree, spellings(dialect))}
    rewards = [str(reward) for reward in listed(names.get("reward_funcs")) if str(reward) in dialect.unique_rewards]
    return [name for name in dialect.unique_options if name in names] + [f"the reward '{name}'" for name in rewards]
