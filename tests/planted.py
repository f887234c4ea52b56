"""Files in a working directory with the names of installed libraries: whoever imports one in place of the library."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path


def plant(folder: Path) -> None:
    """Write one file per module of an installed distribution, which leaves a mark when it is run."""
    for name in importlib.metadata.packages_distributions():
        if name.isidentifier() and name != "rlsys":  # Python itself would take that for the package
            (folder / f"{name}.py").write_text(f"open({str(folder / name)!r} + '.ran', 'w').close()\n")
    assert (folder / "rich.py").exists()


def planted_that_ran(folder: Path) -> list[str]:
    """Return the names of the files that were run."""
    return sorted(mark.stem for mark in folder.glob("*.ran"))
