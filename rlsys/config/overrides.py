"""Overrides on the command line: read by Hydra's own grammar, checked against the schema and the presets.

An override that Hydra cannot read is answered with the position and with how to quote it. An unknown key, preset or
experiment gets the nearest match. What passes is rewritten where Hydra's rules are too narrow: see `normalise`.
"""

from __future__ import annotations

import contextlib
import itertools
import re
import shlex
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, Quote, QuotedString
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from rlsys.config.option import options
from rlsys.config.paths import expand
from rlsys.config.schema import Config
from rlsys.errors import ConfigError, closest, nearest

EXPERIMENT_SUFFIXES = (".yaml", ".yml")
# Options that hold a source of data: a new value replaces the old one as a whole.
SOURCES = ("data.train", "data.eval")
# Descriptions of the values that an option takes, by its type in the schema.
EXPECTED = {
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "list[dict[str, Any]]": "a list of mappings, such as [{name: NAME}], also for a single one",
    "list[str]": "a list, such as [a, b]",
    "list[Any]": "a list, such as [a, b]",
    "dict[str, Any]": "a mapping, such as {name: NAME}",
    "dict[str, str]": "a mapping, such as {a: b}",
    "tuple[float, float]": "a list of two numbers",
}
# A path that begins with `~/` where a value begins, up to the end of the value.
HOME_PATH = re.compile(r"""(?<=[=,\[:\s])~/[^,\]}"']*(?=[,\]}]|$)""")
# Overrides that say what to train, or on what: `rlsys train` starts nothing unless one of them is given.
NAMES_A_RUN = re.compile(r"(experiment|model|model\.path|model\.adapter|model\.build(\..+)?|data|data\.train)")


def config_dir() -> Path:
    """Return the folder of presets: inside the package when installed, beside it in a source tree."""
    package = Path(__file__).resolve().parents[1]
    installed = package / "configs"  # first: what else is called `configs` beside an installed package is another's
    return installed if installed.is_dir() else package.parent / "configs"


@cache
def groups() -> tuple[str, ...]:
    """Return the names of the groups of presets, as `configs/config.yaml` lists them."""
    top = OmegaConf.load(config_dir() / "config.yaml")
    names = (name for entry in top.defaults if isinstance(entry, DictConfig) for name in entry)
    return tuple(str(name) for name in names if not str(name).startswith("override "))


def presets(group: str, folders: Sequence[str] = ()) -> list[str]:
    """Return the names of a group's presets, in `configs/` and in further `folders` of this machine."""
    local = [Path(folder.removeprefix("file://")) for folder in folders if _is_local(folder)]
    found = (path.stem for folder in (config_dir(), *local) for path in (folder / group).glob("*.yaml"))
    return sorted(set(found))


def _is_local(folder: str) -> bool:
    """Return whether the presets in a folder can be listed: not those in a package (`pkg://...`)."""
    return "://" not in folder or folder.startswith("file://")


@cache
def known_keys() -> frozenset[str]:
    """Return every key of the schema, dotted: options and the sections that hold them."""
    keys = [option.key for option in options(Config())]
    return frozenset(key.rsplit(".", depth)[0] for key in keys for depth in range(key.count(".") + 1))


@cache
def open_keys() -> tuple[str, ...]:
    """Return the options whose keys are free, such as `algorithm.advantage`: the registries check them."""
    return tuple(option.key for option in options(Config()) if option.is_open)


def names_a_run(overrides: Sequence[str]) -> bool:
    """Return whether any override names an experiment, a model or training data."""
    return any(NAMES_A_RUN.fullmatch(key) for key in keys_set(overrides))


def keys_set(overrides: Sequence[str]) -> set[str]:
    """Return the keys and groups that overrides set; those that they delete (`~key`) are left out."""
    return {str(override.key_or_group) for text in overrides if not (override := parse(text, sweeps=True)).is_delete()}


def key_of(override: str) -> str:
    """Return the key or group that an override sets or deletes, as Hydra reads it. Raises ConfigError as `parse`."""
    return str(parse(override, sweeps=True).key_or_group)


def normalise(overrides: Sequence[str], *, sweeps: bool = False, folders: Sequence[str] = ()) -> list[str]:
    """Check every override, and rewrite those that Hydra would not take as they are meant.

    - Options of functions, as `algorithm.policy_loss.clip_low=0.1`, become additions (`++`), also within a mapping.
    - `experiment=path/to/file.yaml` registers the file with Hydra and becomes its name there.
    - A source of data replaces the former one: Hydra would merge two mappings, and refuse a list in place of one.

    Args:
        overrides: as on the command line, without flags.
        sweeps: whether several values are allowed (`seed=0,1`).
        folders: folders of presets besides `configs/` and those in the override `hydra.searchpath`.

    Raises:
        ConfigError: an override that cannot be read, or an unknown key, preset or experiment.
    """
    files: dict[str, Path] = {}  # experiment files of this command line, by their names with Hydra
    parsed = [parse(text, sweeps=sweeps) for text in overrides]
    searched = [*folders, *(folder for one in parsed for folder in _searchpath(one))]
    return [part for override in parsed for part in _normalised(override, searched, files)]


def _searchpath(override: Override) -> list[str]:
    """Return the folders of presets that an override adds: those of `hydra.searchpath`."""
    if override.key_or_group != "hydra.searchpath" or not isinstance(override.value(), list):
        return []
    return [str(expand(folder)) if "://" not in folder else folder for folder in map(str, override.value())]


def parse(text: str, *, sweeps: bool = False) -> Override:
    """Read one override with Hydra's grammar. Raise ConfigError saying where it fails and how to quote it."""
    try:
        override = _read(text)
    except HydraException as error:
        raise ConfigError(_rejection(text, error)) from error
    if not override.key_or_group:
        raise ConfigError(f"the override '{text}' has no key: write key=value, or ~key to delete one")
    if override.is_sweep_override() and not sweeps:
        key, value = override.get_key_element(), override.get_value_string()
        raise ConfigError(
            f"{text}: several values need `rlsys train --multirun`; one value with a comma in it is quoted, as "
            f"{_quoted(key, value)}, and a list is written {key}=[{value}]"
        )
    return override


def _read(text: str) -> Override:
    """Read one override with Hydra's grammar, in which a path with `~/` must be quoted, as it is here."""
    parser = OverridesParser.create()
    try:
        return parser.parse_override(text)
    except HydraException:
        with contextlib.suppress(HydraException):  # the message is about the text as it was given
            return parser.parse_override(HOME_PATH.sub(r'"\g<0>"', text))
        raise


def _normalised(override: Override, folders: Sequence[str], files: dict[str, Path]) -> list[str]:
    key, text = override.key_or_group, str(override.input_line)
    # Hydra's own keys are its business: the schema does not have them.
    if re.split(r"[./]", key)[0] == "hydra":
        found = ",".join(_quote(folder) for folder in _searchpath(override))
        return [f"{key}=[{found}]" if found else text]
    if key in groups() and not any(isinstance(value, dict | list) for value in _values(override)):
        return [_with_presets(override, folders, files)]
    # Hydra refuses a key that is not there yet; `++` adds or changes it. The function's signature checks it later.
    holds_nodes = any(isinstance(value, dict) for value in _values(override))
    if any(f"{key}.".startswith(f"{node}.") or (holds_nodes and node.startswith(f"{key}.")) for node in open_keys()):
        return [text if override.is_delete() else f"++{text.lstrip('+')}"]
    if key not in known_keys():
        if key in groups():
            raise ConfigError(f"{text}: choose one name (known: {', '.join(presets(key, folders))})")
        raise ConfigError(_unknown(key))
    for value in _values(override):
        _check_inside(key, value)
    if key in SOURCES and any(isinstance(value, dict | list) for value in _values(override)):
        # `++` makes the second key differ from the first: of two equal keys a sweep keeps the last one only.
        return [f"{key}=null", f"++{text.lstrip('+')}"]
    return [text]


def _unknown(key: str) -> str:
    """Return the message for an unknown key: the nearest one, or those of the section that it is in."""
    above = key.rpartition(".")[0]
    known = {*known_keys(), *groups()} - {above}
    if closest(key, known) is None:
        known = {name for name in known if name.rpartition(".")[0] == (above if above in known_keys() else "")}
    return f"unknown configuration key '{key}': {nearest(key, known)}"


def _check_inside(key: str, value: Any) -> None:
    """Raise ConfigError for an unknown key in a mapping that is given for a whole section."""
    if not isinstance(value, dict) or key in {option.key for option in options(Config())}:
        return
    for name, inner in value.items():
        if f"{key}.{name}" not in known_keys():
            raise ConfigError(_unknown(f"{key}.{name}"))
        _check_inside(f"{key}.{name}", inner)


def _with_presets(override: Override, folders: Sequence[str], files: dict[str, Path]) -> str:
    """Check the presets that an override chooses, and register experiments that are files."""
    group, chosen = override.key_or_group, []
    if override.is_delete():
        return str(override.input_line)
    for value in _values(override):
        if value is None:
            raise ConfigError(_no_preset(group, presets(group, folders)))
        if group == "experiment" and str(value).endswith(EXPERIMENT_SUFFIXES):
            chosen.append(_registered(str(value), folders, files))
            continue
        known = presets(group, folders)
        if str(value) not in known and all(map(_is_local, folders)):
            near = closest(str(value), known)
            hint = f"did you mean '{near}'?" if near else "no such preset" if known else "there are no presets"
            listed = f" (known: {', '.join(known)})" if known else ""
            raise ConfigError(f"{group}={value}: {hint}{listed}{_one_by_one(group)}")
        chosen.append(str(value))
    return f"{override.get_key_element()}={','.join(chosen)}" if chosen else str(override.input_line)


def _no_preset(group: str, known: Sequence[str]) -> str:
    choose = f"choose a preset ({', '.join(known)})" if known else "there are no presets"
    taken = f"; ~{group} takes away the one that an experiment chooses"
    return f"{group}=null: {choose}{_one_by_one(group)}{taken}"


def _one_by_one(section: str) -> str:
    inside = [option.key for option in options(Config()) if option.key.startswith(f"{section}.")]
    return f"; the options of this section are set one by one, as {inside[0]}=..." if inside else ""


def _values(override: Override) -> list[Any]:
    """Return the value of an override, or each value of a sweep; none of a sweep that only Hydra can list (glob)."""
    if not override.is_sweep_override():
        return [override.value()]
    if override.is_discrete_sweep() and hasattr(override.value(), "list"):
        return [Override._convert_value(value) for value in override.value().list]
    return []


def _registered(file: str, folders: Sequence[str], files: dict[str, Path]) -> str:
    """Register an experiment file with Hydra and return its name there, which no preset and none of `files` has."""
    from hydra.core.config_store import ConfigStore

    path = expand(file)
    if not path.is_file():
        raise ConfigError(f"experiment={file}: no such file: {path.resolve()}")
    try:
        content = OmegaConf.load(path)
    except (YAMLError, OmegaConfBaseException, UnicodeDecodeError) as error:
        raise ConfigError(f"experiment={file} is not YAML that can be read: {error}") from error
    if not isinstance(content, DictConfig):
        raise ConfigError(f"experiment={file} holds {type(content).__name__}, not a mapping from keys to values")
    # Only what Hydra's grammar takes as a name: ASCII letters, digits and underscores.
    name = re.sub(r"\W+", "_", path.name.partition(".")[0], flags=re.ASCII) or "experiment"
    if name in presets("experiment", folders) or not name[0].isalpha() or name == "null":
        name = f"file_{name}"  # else Hydra would take the preset of the same name, or a number for no name
    name = next(free for free in _names_like(name) if files.setdefault(free, path.resolve()) == path.resolve())
    ConfigStore.instance().store(name=name, group="experiment", node=content, package="_global_", provider=str(path))
    return name


def _names_like(name: str) -> Iterator[str]:
    yield name
    yield from (f"{name}_{number}" for number in itertools.count(2))


def _rejection(text: str, error: HydraException) -> str:
    """Describe where Hydra's grammar stops, with a caret below the position, and how to write the override instead."""
    key, equals, value = text.partition("=")
    if not equals:
        return f"the override '{text}' has no '=': write key=value (or ~key to delete one)"
    position = _position(text, error)
    if position < len(key):
        near = closest(key, known_keys())
        hint = f"; did you mean '{near}'?" if near else ""
        return f"the override '{text}' has a key that cannot be read: a key is dotted words, as train.num_steps{hint}"
    start = text.rfind("\n", 0, position) + 1  # the line's start, in a value of several lines
    caret = " " * (position - start) + "^"
    lines = ["this override cannot be read:", f"  {text[start:].partition(chr(10))[0]}", f"  {caret}"]
    # Quoted as a whole, a list or mapping would become a text. `{{` and `{%` begin a template, which is one.
    if value.startswith(("[", "{")) and not value.startswith(("{{", "{%")):
        lines.append("check its brackets, and quote each text in it that has other characters than letters, digits and")
        lines.append(r"""  -_./\+:$%*@?|  as in 'rewards=[{name: regex, pattern: "^(a|b)$"}]'""")
    else:
        lines.append("quote the value (for the shell, the whole as well):")
        lines.append(f"  {_quoted(key, value)}")
    return "\n".join(lines)


def wrong_type(key: str, value: str) -> str:
    """Return the message for an override whose value does not fit the option's type."""
    found = next((option for option in options(Config()) if option.key == key), None)
    if found is None:  # a section, whose options are set one by one
        inside = [option.key for option in options(Config()) if option.key.startswith(f"{key}.")]
        return f"{key}={value}: {key} is a section, not an option; its options are {', '.join(inside)}"
    kind, _, optional = found.type.partition(" | ")
    return f"{key}={value}: must be {EXPECTED[kind]}{' or null' if optional else ''} ({found.rule.help})"


def _position(text: str, error: HydraException) -> int:
    """Return the position in `text` at which Hydra's lexer or parser stopped."""
    cause = error.__cause__
    position = getattr(cause, "startIndex", None)  # the lexer's position
    if position is None:
        position = getattr(getattr(cause, "offendingToken", None), "start", None)  # the parser's position
    if position is None:  # an unknown function such as `(copy)`, or a rule that is broken as a whole
        position = text.find("(")
    return position if position >= 0 else text.find("=") + 1


def _quoted(key: str, value: str) -> str:
    """Return `key=value` with the value quoted for Hydra and the whole quoted for the shell."""
    return shlex.quote(f"{key}={_quote(value)}")


def _quote(value: str) -> str:
    quoted: str = QuotedString(text=value, quote=Quote.double).with_quotes()
    return quoted
