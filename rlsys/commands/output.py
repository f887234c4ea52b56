"""Files and folders that a command is to write: refused before the work when they could not be written after it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from rlsys.config.paths import expand, nearest_existing


def output_file(text: str) -> Path:
    """Return the path of a file to write. Raise argparse's error when it could not be written."""
    path = expand(text)
    if path.is_dir():
        raise argparse.ArgumentTypeError(f"{path} is a folder: name a file, such as {path / 'NAME'}")
    if not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"the folder {path.parent.resolve()} does not exist: create it first")
    return _writable(path, path if path.exists() else path.parent)


def output_folder(text: str) -> Path:
    """Return the path of a folder to write, which need not exist. Raise argparse's error when it could not be made."""
    path = expand(text)
    there = nearest_existing(path)
    if not there.is_dir():
        raise argparse.ArgumentTypeError(f"{there} is a file: name a folder")
    return _writable(path, there)


def _writable(path: Path, there: Path) -> Path:
    if not os.access(there, os.W_OK):
        raise argparse.ArgumentTypeError(f"no permission to write {there}")
    return path
