"""What the tests of reports share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from rlsys.run_folder.folder import RunFolder
from tests.run_folder import write_lines

RunOf = Callable[[list[dict[str, float | None]]], RunFolder]


@pytest.fixture
def run_of(tmp_path: Path) -> RunOf:
    """Make the folder of a run of which there are only metrics."""

    def make(rows: list[dict[str, float | None]]) -> RunFolder:
        folder = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        write_lines(folder / "metrics.jsonl", rows)
        return RunFolder(folder)

    return make
