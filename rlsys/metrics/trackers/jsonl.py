"""A copy of the rows of `metrics.jsonl` in a file elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlsys.metrics.formatting import as_json
from rlsys.metrics.trackers import TrackedRun, register


@register("jsonl")
class JsonLines:
    """A file that is appended to and never rewritten: if a resumed run repeats a step, the last line counts."""

    def __init__(self, run: TrackedRun, *, path: str) -> None:
        """Open the file for appending.

        Args:
            run: the run to track.
            path: the file; its folder is made if it does not exist.
        """
        target = Path(path).expanduser().resolve()
        if target == (run.run_dir / "metrics.jsonl").resolve():
            raise ValueError(f"path={path} is the run's own metrics.jsonl, which is always written: name another file")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._file = target.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Append one row."""
        self._file.write(as_json(metrics) + "\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()
