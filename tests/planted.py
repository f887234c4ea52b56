"""Files in a working directory with the names of installed libraries: whoever imports one in place of the library."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

# Asked in a process of its own: here setuptools may have been imported, which appends a folder of further libraries.
# Those are nowhere to be found in most processes of a run, so a file of such a name replaces nothing there.
INSTALLED = "import importlib.metadata, json; print(json.dumps(list(importlib.metadata.packages_distributions())))"
# What a planted file does when it is run: it leaves a mark that says who imported it.
MARK = "import sys, traceback\nopen({mark!r}, 'w').write(f'{{sys.argv}}\\n' + ''.join(traceback.format_stack()))\n"


def plant(folder: Path) -> None:
    """Write one file per module of an installed distribution, which leaves a mark when it is run."""
    listing = subprocess.run([sys.executable, "-c", INSTALLED], capture_output=True, check=True, timeout=60)
    for name in json.loads(listing.stdout):
        if name.isidentifier() and name != "rlsys":  # Python itself would take that for the package
            (folder / f"{name}.py").write_text(MARK.format(mark=str(folder / f"{name}.ran")))
    assert (folder / "rich.py").exists()


def planted_that_ran(folder: Path) -> list[str]:
    """Return what was run: the name of each file, and who imported it."""
    return sorted(f"{mark.stem}: {mark.read_text()}" for mark in folder.glob("*.ran"))
