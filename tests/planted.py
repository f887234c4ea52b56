"""Files in a working directory with the names of installed libraries: whoever imports one in place of the library."""

from __future__ import annotations

import importlib.metadata
import importlib.util
from pathlib import Path


def plant(folder: Path) -> None:
    """Write one file per module of an installed distribution, which leaves a mark when it is run."""
    for name in importlib.metadata.packages_distributions():
        # Python itself would take `rlsys` for the package. And a file anywhere on the path comes before a package
        # without a file of its own, as `opentelemetry`: docs/security.md names it.
        if name.isidentifier() and name != "rlsys" and _is_regular(name):
            (folder / f"{name}.py").write_text(f"open({str(folder / name)!r} + '.ran', 'w').close()\n")
    assert (folder / "rich.py").exists()


def _is_regular(name: str) -> bool:
    spec = importlib.util.find_spec(name)
    return spec is not None and spec.origin is not None


def planted_that_ran(folder: Path) -> list[str]:
    """Return the names of the files that were run."""
    return sorted(mark.stem for mark in folder.glob("*.ran"))
