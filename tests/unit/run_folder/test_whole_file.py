"""Files that are whole or as they were."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlsys.run_folder.whole_file import write_whole


def test_a_file_is_replaced_as_a_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "metrics.jsonl"
    write_whole(path, "one\n")
    seen: list[str] = []
    sync = os.fsync
    monkeypatch.setattr(os, "fsync", lambda descriptor: (seen.append(path.read_text()), sync(descriptor))[1])
    write_whole(path, "two\n")
    assert seen == ["one\n", "two\n"]  # the content reaches the disk before the name, and the name after it
    assert [file.name for file in tmp_path.iterdir()] == ["metrics.jsonl"]


def test_an_interrupted_write_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "config.yaml"
    write_whole(path, "old")

    def full(_: int) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_whole(path, "new")
    assert path.read_text() == "old"
