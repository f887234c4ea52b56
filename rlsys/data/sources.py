"""Sources of rows: one or several, each a file, a `datasets` name or a registered function."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlsys.config.paths import absolute, absolute_function, expand, is_file
from rlsys.config.schema import DataConfig
from rlsys.data import registry
from rlsys.data.files import is_pattern, reader_of, title_of
from rlsys.data.order import BLOCK
from rlsys.errors import ConfigError, nearest

# Options of `datasets.load_dataset` that name files: local ones for its readers of files, such as `json`.
FILES = ("data_files", "data_dir")
# The keys of a source that hold a text or a mapping.
TYPES: dict[str, tuple[type, str]] = {
    "split": (str, "text"),
    "subset": (str, "text"),
    "prompt_column": (str, "text"),
    "label": (str, "text"),
    "columns": (Mapping, "a mapping of texts, such as {answer: gold}"),
    "options": (Mapping, "a mapping, such as {option: value}"),
}


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
        """The label, or the last part of the name without a file's suffix."""
        return self.label or title_of(self.name.rpartition(":")[2] or self.name)


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
    if key == "data.train":
        _check_weights(found)
    return _labelled(found)


def _check_weights(found: Sequence[Source]) -> None:
    """Raise ConfigError for a weight too small for a single prompt in each `BLOCK` of a mixture."""
    total = sum(source.weight or 0.0 for source in found)
    for source in found:
        if source.weight is not None and source.weight * BLOCK < total * (1 - 1e-9):
            raise ConfigError(
                f"data.train: '{source.title}' has weight={source.weight:g}, less than one in {BLOCK} of all weights, "
                f"and a mixture is exact over {BLOCK} prompts: give it at least "
                f"{(total - source.weight) / (BLOCK - 1):.6g}, or leave it out"
            )


def absolute_sources(value: Any) -> Any:
    """Return `data.train` or `data.eval` with absolute names of files, folders and `path.py:function`."""
    if isinstance(value, list):
        return [absolute_sources(entry) for entry in value]
    if isinstance(value, Mapping) and isinstance(value.get("name"), str):
        made = {**value, "name": _absolute(value["name"])}
        if isinstance(value.get("options"), Mapping):
            made["options"] = absolute_options([value["name"]], value["options"])
        return made
    return _absolute(value) if isinstance(value, str) else value


def absolute_options(names: Sequence[Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of sources; where a name is a reader of `datasets`, such as `json`, their files get absolute.

    The files of any other data set lie in its repository or folder, so they stay.
    """
    if not any(key in FILES for key in options):
        return dict(options)
    from datasets import packaged_modules

    readers = packaged_modules._PACKAGED_DATASETS_MODULES
    if not any(isinstance(name, str) and name in readers for name in names):
        return dict(options)
    return {key: _absolute_files(value) if key in FILES else value for key, value in options.items()}


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk` of a `datasets` data set without splits."""
    return is_file(str(folder / "state.json")) and is_file(str(folder / "dataset_info.json"))


def _absolute(name: str) -> str:
    # A name with a known suffix is a file; any other may be the folder of a data set. As in `read`, a registered source
    # comes before a folder of the same name.
    is_there = is_file(name) or is_pattern(name) if reader_of(name) else os.path.isdir(os.path.expanduser(name))
    return absolute(name) if is_there and name not in registry.names() else absolute_function(name)


def _absolute_files(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _absolute_files(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_absolute_files(one) for one in value]
    is_local = isinstance(value, str) and value and "://" not in value
    return absolute(value) if is_local else value


def _source(entry: Any, key: str, split: str, config: DataConfig, *, alone: bool) -> Source:
    """Return the source that one entry describes. Raise ConfigError for unknown keys and impossible values."""
    name = entry.get("name") if isinstance(entry, Mapping) else entry
    if not isinstance(name, str) or not name.strip():
        raise ConfigError(f"{key}: {entry!r} is neither a source's name nor a mapping with a `name`: {{name: ...}}")
    if isinstance(entry, str) and alone:
        _check_types({"name": name, "options": config.options}, "data.options")
        return Source(name=entry, split=split, options=config.options)
    if config.options:
        raise ConfigError(
            f"data.options={dict(config.options)} goes with a source that is a single name; in {key} put the options "
            "into the source: {name: ..., options: {...}}"
        )
    if isinstance(entry, str):
        return Source(name=entry, split=split)
    known = [option.name for option in dataclasses.fields(Source)]
    for option in entry:
        if option not in known:
            raise ConfigError(f"{key}: '{entry['name']}' has no key '{option}': {nearest(str(option), known)}")
    _check_types(entry, key)
    made = Source(**{"split": split, **{option: value for option, value in entry.items() if value is not None}})
    # Only data sets of the hub have splits and configurations by name; registered functions take a split.
    is_file = reader_of(made.name) is not None or is_saved(expand(made.name))
    for option in ("split", "subset"):
        if entry.get(option) is not None and (is_file or (option == "subset" and ":" in made.name)):
            raise ConfigError(f"{key}: '{made.name}' has no {option}: that is for `datasets` names")
    _check_numbers(made, key)
    return made


def _check_types(entry: Mapping[str, Any], key: str) -> None:
    for option, (kind, wanted) in TYPES.items():
        value = entry.get(option)
        # Values of options are the reader's; columns have names on both sides.
        names = [*value, *(value.values() if option == "columns" else ())] if isinstance(value, Mapping) else []
        if value is not None and not (isinstance(value, kind) and all(isinstance(name, str) for name in names)):
            raise ConfigError(f"{key}: '{entry['name']}' has {option}={value!r}: it must be {wanted}")


def _check_numbers(source: Source, key: str) -> None:
    for option in ("weight", "share", "limit"):
        value = getattr(source, option)
        kind, wanted = (int, "a whole number") if option == "limit" else (int | float, "a number")
        if value is not None and (isinstance(value, bool) or not isinstance(value, kind)):
            raise ConfigError(f"{key}: '{source.name}' has {option}={value!r}: it must be {wanted}")
        if value is not None and not (value > 0 and math.isfinite(value)):
            raise ConfigError(f"{key}: '{source.name}' has {option}={value}: it must be positive")
    if source.share > 1:
        raise ConfigError(f"{key}: '{source.name}' has share={source.share}: it is a part of the rows, at most 1")


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
