"""Loading of a source's rows: reading it, choosing rows, renaming columns, and the place of each row for messages."""

from __future__ import annotations

import dataclasses
import lzma
import math
import traceback
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.config.paths import expand, is_file
from rlsys.config.schema import DataConfig
from rlsys.data import Row, registry
from rlsys.data.files import (
    READERS,
    check_file,
    csv_options,
    describe_fault,
    files_of,
    json_rows,
    place_in_file,
    reader_of,
    uncompressed,
)
from rlsys.data.sources import Source, is_saved
from rlsys.errors import ConfigError, DataError, RlsysError, nearest

# What a file raises that has no line to blame: its bytes cannot be read, or its values are nested without end.
UNREADABLE = (OSError, EOFError, zlib.error, lzma.LZMAError, RecursionError)


@dataclass(frozen=True)
class LoadedRows:
    """The rows of one source, with their columns under the names that the run uses."""

    source: Source
    rows: list[Row]
    numbers: Sequence[int]  # number of each row in its source, from 0
    files: Sequence[tuple[str, int]] = ()  # names and numbers of rows of its files, where a pattern names several

    def where(self, index: int) -> str:
        """Return the place of a row for messages: file and line, or the row's number."""
        number = self.numbers[index]
        for name, size in self.files:
            if number < size:
                return place_in_file(name, number)
            number -= size
        return place_in_file(self.source.name, number)


def load(source: Source, config: DataConfig, *, seed: int) -> LoadedRows:
    """Return the rows of a source that are used, renamed.

    Raises ConfigError when there is no such source, and DataError for one that cannot be used.
    """
    parts = _parts(source)
    every = [row for _, rows in parts for row in rows]
    numbers = list(range(len(every)))
    # Drawn by the seed and put back into the file's order: `limit` then takes the first of these rows.
    if source.share < 1:
        order = np.random.default_rng([seed, len(every)]).permutation(len(every))
        numbers = sorted(int(number) for number in order[: math.floor(len(every) * source.share)])
    numbers = numbers[: source.limit]
    files = [(name, len(rows)) for name, rows in parts]
    loaded = LoadedRows(source, [every[number] for number in numbers], numbers, files)
    if not loaded.rows:
        raise DataError(f"data '{source.name}' has no rows (split={source.split}, share={source.share:g})")
    return _renamed(loaded, config)


def read(source: Source) -> list[Row]:
    """Return all rows of a source as they are."""
    return [row for _, rows in _parts(source) for row in rows]


def _parts(source: Source) -> list[tuple[str, list[Row]]]:
    """Return the rows of each file of a source; any other source is one part."""
    if "://" in source.name:
        raise ConfigError(
            f"data '{source.name}' is an address: name a reader and give it as its file, as "
            f"{{name: json, options: {{data_files: '{source.name}'}}}}"
        )
    if source.name in registry.names() or (":" in source.name and not is_file(source.name)):
        return [(source.name, _from_function(source))]
    return [(name, _from_file(dataclasses.replace(source, name=name))) for name in files_of(source.name)]


def _from_function(source: Source) -> list[Row]:
    name = source.name
    function = registry.bind(name, dict(source.options))
    try:
        rows = list(function(source.split))
    except RlsysError:
        raise
    except Exception as error:  # a user's function may raise anything
        frame = traceback.extract_tb(error.__traceback__)[-1]
        raise DataError(
            f"data source '{name}' failed: {type(error).__name__}: {error} ({frame.filename}, line {frame.lineno})"
        ) from error
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"data source '{name}': row {number} is {type(row).__name__}, not a dict with its columns")
    return rows


def _from_file(source: Source) -> list[Row]:
    """Return the rows of a file, of a folder or of a data set of the hub."""
    path, kind, is_there = expand(source.name), reader_of(source.name), is_file(source.name)
    if kind is not None and not is_there:
        raise ConfigError(f"data: no such file: {path.absolute()}")
    if kind is None and is_there:
        raise DataError(f"data '{source.name}': a file of rows ends in {', '.join(READERS)}, compressed also in .gz")
    try:
        if kind is None:
            return _from_datasets(source, path)
        return _file_rows(source, kind)
    except RlsysError:
        raise
    except Exception as error:
        raise DataError(_unreadable(source, kind, error)) from error


def _file_rows(source: Source, kind: str) -> list[Row]:
    import datasets

    if kind == "json":
        if source.options:
            raise ConfigError(f"data '{source.name}': a json file has no options, remove {', '.join(source.options)}")
        return json_rows(source.name)
    options = dict(source.options)
    if kind == "csv":
        check_file(source.name, options)
        options = csv_options(source.name, options)
    if kind == "text":
        options = {"encoding": "utf-8-sig"} | options  # a byte order mark is no part of the first prompt
    with warnings.catch_warnings(), uncompressed(source.name) as (path, defaults):
        # pandas warns with this text where it drops the surplus fields of a row.
        warnings.filterwarnings("error", message="Length of header or names does not match")
        return list(datasets.load_dataset(kind, data_files=str(path), split="train", **{**defaults, **options}))


def _from_datasets(source: Source, path: Path) -> list[Row]:
    """Return the rows of a data set: in a folder of `save_to_disk`, in another folder, or on the hub."""
    import datasets

    has_splits = is_file(str(path / "dataset_dict.json"))
    if not has_splits and not is_saved(path):
        return list(datasets.load_dataset(source.name, source.subset, split=source.split, **source.options))
    if source.options or source.subset:
        raise ConfigError(f"data '{source.name}' was written by save_to_disk: it has no subset and no options")
    found = datasets.load_from_disk(str(path))
    if has_splits and source.split not in found:
        raise ConfigError(f"data '{source.name}' has no split '{source.split}': {nearest(str(source.split), found)}")
    return list(found[source.split] if has_splits else found)


def _unreadable(source: Source, kind: str | None, error: Exception) -> str:
    """Return why a source cannot be read: the wrong line of a file, else what `datasets` reports."""
    name = source.name
    cause = error.__cause__ or error  # the error that datasets wraps around it has no information
    if kind is not None:
        found = None if isinstance(error, UNREADABLE) else describe_fault(name, source.options)
        return found or f"data '{name}' cannot be read: {type(cause).__name__}: {cause}"
    return (
        f"data '{name}' cannot be read as a registered source ({nearest(name, registry.names())}), a "
        f"{'/'.join(sorted(READERS))} file or a datasets name: {type(cause).__name__}: {cause}"
    )


def _renamed(loaded: LoadedRows, config: DataConfig) -> LoadedRows:
    """Return the rows with the prompt in `data.prompt_column`, and with the renames of `columns` applied.

    A name with dots that is no column is a key inside of one: `reward_model.ground_truth`, which a row whose
    `reward_model` is null lacks as well.
    """
    source, ours = loaded.source, config.prompt_column
    theirs = source.prompt_column or ours
    renames = dict(config.columns if source.columns is None else source.columns)
    if theirs != ours or "." in ours:
        renames[ours] = theirs
    if not renames:
        return loaded
    for index, row in enumerate(loaded.rows):
        for new, old in renames.items():
            if new != ours and not _has(row, old):
                inside = [f"{key}.{name}" for key, value in row.items() if isinstance(value, Mapping) for name in value]
                raise DataError(
                    f"{loaded.where(index)}: no column '{old}' to rename to '{new}'; the row has: "
                    f"{', '.join([*row, *inside])} ({nearest(old, [*row, *inside])})"
                )
    return dataclasses.replace(loaded, rows=[_renamed_row(row, renames) for row in loaded.rows])


def _renamed_row(row: Row, renames: Mapping[str, str]) -> Row:
    kept = {key: value for key, value in row.items() if key not in renames.values()}
    return kept | {new: _value(row, old) for new, old in renames.items()}


def _has(row: Mapping[str, Any], name: str) -> bool:
    first, dot, rest = name.partition(".")
    if name in row or not dot or first not in row:
        return name in row
    return row[first] is None or (isinstance(row[first], Mapping) and _has(row[first], rest))


def _value(row: Mapping[str, Any], name: str) -> Any:
    first, _, rest = name.partition(".")
    inside = name not in row and isinstance(row.get(first), Mapping)
    return _value(row[first], rest) if inside else row.get(name)
