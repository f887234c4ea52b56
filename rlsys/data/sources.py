"""Sources of rows: one or several, each a file, a `datasets` name or a registered function."""

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.config.paths import absolute, absolute_function, absolute_if_there, expand
from rlsys.config.schema import DataConfig
from rlsys.data import Row, registry
from rlsys.data.files import READERS, check_file, csv_options, describe_fault, json_rows, place_in_file
from rlsys.errors import ConfigError, DataError, RlsysError, nearest

# Options of `datasets.load_dataset` that may name local files.
FILES = ("data_files", "data_dir")


@dataclass(frozen=True)
class Source:
    """One entry of `data.train` or `data.eval`."""

    name: str  # a file, a `datasets` name, or a registered source
    split: str | None = None  # null: data.train_split or data.eval_split; a file has a single split
    subset: str | None = None  # name of a configuration of the data set on the hub
    weight: float | None = None  # relative share of the prompts; null in all sources: in proportion to their rows
    share: float = 1.0  # part of its rows that is used, drawn by the run's seed
    limit: int | None = None  # use at most this many of these rows, the first ones
    prompt_column: str | None = None  # null: data.prompt_column
    columns: Mapping[str, str] | None = None  # null: data.columns
    label: str | None = None  # name in messages and metrics; null: the file's or data set's
    options: Mapping[str, Any] = field(default_factory=dict)  # options of the registered source, or of `load_dataset`

    @property
    def title(self) -> str:
        """The label, or the last part of the name without its suffix."""
        return self.label or Path(self.name.rpartition(":")[2] or self.name).stem


@dataclass(frozen=True)
class LoadedRows:
    """The rows of one source, with their columns under the names that the run uses."""

    source: Source
    rows: list[Row]
    numbers: Sequence[int]  # number of each row in its source, from 0

    def where(self, index: int) -> str:
        """Return the place of a row for messages: file and line, or the row's number."""
        return place_in_file(self.source.name, self.numbers[index])


def sources_of(value: Any, key: str, config: DataConfig) -> list[Source]:
    """Return the sources that the option `key` (data.train or data.eval) names; none for null.

    Raises ConfigError for what is not a source.
    """
    if value is None:
        return []
    entries = value if isinstance(value, list) else [value]
    if not entries:
        raise ConfigError(f"{key} is an empty list: name a source" + (", or null" if key == "data.eval" else ""))
    split = config.train_split if key == "data.train" else config.eval_split
    found = [_source(entry, key, split, config, alone=not isinstance(value, list)) for entry in entries]
    weighted = [source.title for source in found if source.weight is not None]
    # Weights are relative to each other: a source without one has no place among them.
    if weighted and len(weighted) < len(found):
        raise ConfigError(f"{key}: {', '.join(weighted)} has a weight and others have none: give all of them one")
    return _labelled(found)


def absolute_sources(value: Any) -> Any:
    """Return `data.train` or `data.eval` with absolute names of files, folders and `path.py:function`."""
    if isinstance(value, list):
        return [absolute_sources(entry) for entry in value]
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        made = {**value, "name": _absolute(value["name"])}
        options = value.get("options")
        if isinstance(options, Mapping):
            made["options"] = {key: absolute_if_there(one) if key in FILES else one for key, one in options.items()}
        return made
    return _absolute(value) if isinstance(value, str) else value


def _absolute(name: str) -> str:
    path = expand(name)
    # A name with a known suffix is a file; any other may be the folder of a data set. As in `read`, a registered source
    # comes before a folder of the same name.
    is_there = path.is_file() if path.suffix.lower() in READERS else bool(name) and path.is_dir()
    return absolute(path) if is_there and name not in registry.names() else absolute_function(name)


def load(source: Source, config: DataConfig, *, seed: int) -> LoadedRows:
    """Return the rows of a source that are used, renamed.

    Raises ConfigError when there is no such source, and DataError for one that cannot be used.
    """
    every = read(source)
    numbers = list(range(len(every)))
    # Drawn by the seed and put back into the file's order: `limit` then takes the first of these rows.
    if source.share < 1:
        order = np.random.default_rng([seed, len(every)]).permutation(len(every))
        numbers = sorted(int(number) for number in order[: math.floor(len(every) * source.share)])
    numbers = numbers[: source.limit]
    loaded = LoadedRows(source, [every[number] for number in numbers], numbers)
    if not loaded.rows:
        raise DataError(f"data '{source.name}' has no rows (split={source.split}, share={source.share:g})")
    return _renamed(loaded, config)


def read(source: Source) -> list[Row]:
    """Return all rows of a source as they are."""
    if source.name in registry.names() or ":" in source.name:
        return registry.bind(source.name, dict(source.options))(source.split)
    import datasets

    path = expand(source.name)
    kind = READERS.get(path.suffix.lower())
    if kind is not None and not path.is_file():
        raise ConfigError(f"data: no such file: {path.resolve()}")
    if kind == "json":
        if source.options:
            raise ConfigError(f"data '{source.name}': a json file has no options, remove {', '.join(source.options)}")
        return json_rows(source.name)
    if kind == "csv":
        check_file(source.name, source.options)
    try:
        if kind is None:
            return list(datasets.load_dataset(source.name, source.subset, split=source.split, **source.options))
        options = csv_options(source.name, source.options) if kind == "csv" else source.options
        with warnings.catch_warnings():
            # pandas warns with this text where it drops the surplus fields of a row.
            warnings.filterwarnings("error", message="Length of header or names does not match")
            return list(datasets.load_dataset(kind, data_files=str(path), split="train", **options))
    except RlsysError:
        raise
    except Exception as error:
        raise DataError(_unreadable(source, kind, error)) from error


def _unreadable(source: Source, kind: str | None, error: Exception) -> str:
    """Return why a source cannot be read: the wrong line of a file, else what `datasets` reports."""
    name = source.name
    found = describe_fault(name, source.options) if kind is not None else None
    if found is not None:
        return found
    known = registry.names()
    cause = error.__cause__ or error  # the error that datasets wraps around it has no information
    return (
        f"data '{name}' cannot be read as a registered source ({nearest(name, known)}), a "
        f"{'/'.join(sorted(READERS))} file or a datasets name: {type(cause).__name__}: {cause}"
    )


def _source(entry: Any, key: str, split: str, config: DataConfig, *, alone: bool) -> Source:
    """Return the source that one entry describes. Raise ConfigError for unknown keys and impossible values."""
    if isinstance(entry, str) and alone:
        return Source(name=entry, split=split, options=config.options)
    if config.options:
        raise ConfigError(
            f"data.options={dict(config.options)} goes with a source that is a single name; in {key} put the options "
            "into the source: {name: ..., options: {...}}"
        )
    if isinstance(entry, str):
        return Source(name=entry, split=split)
    if not isinstance(entry, Mapping) or not isinstance(entry.get("name"), str):
        raise ConfigError(f"{key}: {entry!r} is neither a source's name nor a mapping with a `name`: {{name: ...}}")
    known = [option.name for option in dataclasses.fields(Source)]
    for option in entry:
        if option not in known:
            raise ConfigError(f"{key}: '{entry['name']}' has no key '{option}': {nearest(str(option), known)}")
    made = Source(**{"split": split, **{option: value for option, value in entry.items() if value is not None}})
    # Only data sets of the hub have splits and configurations by name; registered functions take a split.
    is_file = Path(made.name).suffix.lower() in READERS
    for option in ("split", "subset"):
        if entry.get(option) is not None and (is_file or (option == "subset" and ":" in made.name)):
            raise ConfigError(f"{key}: '{made.name}' has no {option}: that is for `datasets` names")
    for option in ("weight", "share", "limit"):
        value = getattr(made, option)
        kind, wanted = (int, "a whole number") if option == "limit" else (int | float, "a number")
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise ConfigError(f"{key}: '{made.name}' has {option}={value!r}: it must be {wanted}")
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{key}: '{made.name}' has {option}={value}: it must be positive")
    if made.share > 1:
        raise ConfigError(f"{key}: '{made.name}' has share={made.share}: it is a part of the rows, at most 1")
    return made


def _labelled(sources: Sequence[Source]) -> list[Source]:
    """Return the sources with labels that differ: of two called `train` the second becomes `train_2`."""
    taken: set[str] = set()
    labelled = []
    for source in sources:
        label, number = source.title, 1
        while label in taken:
            number += 1
            label = f"{source.title}_{number}"
        taken.add(label)
        labelled.append(dataclasses.replace(source, label=label))
    return labelled


def _renamed(loaded: LoadedRows, config: DataConfig) -> LoadedRows:
    """Return the rows with the prompt in `data.prompt_column`, and with the renames of `columns` applied."""
    source, ours = loaded.source, config.prompt_column
    theirs = source.prompt_column or ours
    renames = dict(config.columns if source.columns is None else source.columns)
    if theirs != ours:
        renames[ours] = theirs
    if not renames:
        return loaded
    for index, row in enumerate(loaded.rows):
        for new, old in renames.items():
            if old not in row and new != ours:
                raise DataError(
                    f"{loaded.where(index)}: no column '{old}' to rename to '{new}'; the row has: "
                    f"{', '.join(row)} ({nearest(old, row)})"
                )
    return dataclasses.replace(loaded, rows=[_renamed_row(row, renames) for row in loaded.rows])


def _renamed_row(row: Row, renames: Mapping[str, str]) -> Row:
    kept = {key: value for key, value in row.items() if key not in renames.values()}
    return kept | {new: row.get(old) for new, old in renames.items()}
