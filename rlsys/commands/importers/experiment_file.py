"""A translated recipe as an experiment file, checked before it is written."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from omegaconf import OmegaConf

from rlsys.commands.importers.translate import Translation
from rlsys.config.compose import load_config
from rlsys.config.written import as_written, shown
from rlsys.errors import ConfigError
from rlsys.metrics.trackers.choice import choose_trackers
from rlsys.preflight.checks import check_config


def experiment(result: Translation, origin: str) -> str:
    """Write the experiment file: what differs from our defaults, under comments on what was not carried over."""
    head = [
        "# @package _global_",
        f"# From {origin}, {result.dialect} (defaults of {result.version}), by rlsys import.",
    ]
    for line in [*open_points(result), *result.remarks]:
        head += [
            f"# {part}" for part in textwrap.wrap(shown(line), 116, subsequent_indent="  " if line[0] == "-" else "")
        ]
    return "\n".join([*head, OmegaConf.to_yaml(OmegaConf.create(as_written(result.config))).rstrip(), ""])


def open_points(result: Translation) -> list[str]:
    """List what the recipe asks for and the run will not do, one line per option."""
    given = [f"{left.option}: {shown(left.reason)}" for left in result.unsupported]
    unset = [f"{row.option} (unset): {shown(row.note)}" for row in result.defaults if not row.is_supported]
    unknown = [f"{left.option}: unknown" for left in result.unknown]
    lines = [*given, *unset, *unknown]
    return ["Not carried over:", *(f"- {line}" for line in lines)] if lines else []


def missing_trackers(entries: Sequence[Any]) -> dict[str, str]:
    """Return the trackers whose library is not installed here, with the reason: the run may be on another machine."""
    missing = {}
    for entry in entries:
        try:
            choose_trackers([entry])
        except ConfigError as error:
            missing[str(entry["name"] if isinstance(entry, Mapping) else entry)] = str(error)
    return missing


def check_written(text: str, *, without_trackers: bool) -> None:
    """Raise ConfigError unless the file composes and passes the checks that every run passes before Ray starts."""
    with TemporaryDirectory() as folder:
        path = Path(folder) / "imported.yaml"
        path.write_text(text, encoding="utf-8")
        try:
            check_config(load_config([f"experiment={path}", *(["logging.trackers=[]"] if without_trackers else [])]))
        except ConfigError as error:
            raise ConfigError(f"the imported recipe cannot run, and nothing was written: {error}") from error
