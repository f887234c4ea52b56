"""The rows of `metrics.jsonl` in a file elsewhere."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from rlsys.metrics.row import as_json
from rlsys.metrics.trackers import Start, register


@register("jsonl")
class JsonLines:
    """Appends to `path` and never rewrites it: of a step that a resumed run ran again, the last line counts."""

    def __init__(self, start: Start, *, path: str) -> None:
        target = Path(path).expanduser().resolve()
        if target == (start.run_dir / "metrics.jsonl").resolve():
            raise ValueError(f"path={path} is the run's own record, which is written anyway: choose another")
        target.parent.mkdir(parents=True, exist_ok=True)
        self._file = target.open("a", encoding="utf-8")

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        self._file.write(as_json(metrics) + "\n")
        self._file.flush()

    def close(self) -> None:
        self._file.close()
