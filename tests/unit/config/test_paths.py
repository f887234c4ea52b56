"""Names of files in options become independent of the working directory."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsys.config.paths import (
    absolute,
    absolute_function,
    absolute_if_there,
    absolute_node,
    expand,
    nearest_existing,
    read_text,
)
from rlsys.errors import ConfigError


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home folder with `rows.jsonl` and `mine.py`, and beside it the working directory, with the same two files."""
    for folder in ("home", "here"):
        (tmp_path / folder).mkdir()
        for name in ("rows.jsonl", "mine.py"):
            (tmp_path / folder / name).write_text("")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "home"


def test_the_home_folder(home: Path) -> None:
    assert expand("~/rows.jsonl") == home / "rows.jsonl"
    assert expand("a/~b") == Path("a/~b")
    assert absolute("~/runs/../x") == str(home / "x")
    assert absolute("runs") == str(home.parent / "here" / "runs")
    with pytest.raises(ConfigError, match=r"the path '~nobody-here/x' begins with ~, but .*: write the whole path"):
        expand("~nobody-here/x")
    assert absolute_if_there("~nobody-here/x") == "~nobody-here/x"


def test_what_exists_of_a_path(home: Path) -> None:
    assert nearest_existing(home / "mine.py") == home / "mine.py"
    assert nearest_existing(home / "mine.py" / "x") == home / "mine.py"
    assert nearest_existing(Path("new/run")) == home.parent / "here"
    (home / "link").symlink_to(home.parent / "elsewhere")
    assert nearest_existing(home / "link") == home.parent  # where the link's folder would be made


def test_a_file_that_cannot_be_read_is_named_with_its_option(home: Path) -> None:
    (home / "mine.py").write_bytes("\ufeffé".encode())
    assert read_text("~/mine.py", "--corpus") == "é"
    (home / "mine.py").write_bytes(b"a\xe9")
    with pytest.raises(ConfigError, match=r"--corpus: ~/mine\.py is not UTF-8 \(byte 2\)"):
        read_text("~/mine.py", "--corpus")
    for missing in ("none.txt", "."):
        with pytest.raises(ConfigError, match=rf"--corpus: {missing} cannot be read: (No such|Is a)"):
            read_text(missing, "--corpus")


@pytest.mark.parametrize(
    ("name", "made"),
    [
        ("mine.py:score", "HERE/mine.py:score"),
        ("~/mine.py:score", "HOME/mine.py:score"),
        ("missing.py:score", "HERE/missing.py:score"),  # reported under its whole name
        ("my.module:score", "my.module:score"),
        ("grpo", "grpo"),
    ],
)
def test_functions_in_files(home: Path, name: str, made: str) -> None:
    made = made.replace("HOME", str(home)).replace("HERE", str(home.parent / "here"))
    assert absolute_function(name) == made
    assert absolute_node({"name": name, "size": 3}) == {"name": made, "size": 3}
    assert absolute_node({"size": 3}) == {"size": 3}


def test_only_what_exists_is_a_file(home: Path) -> None:
    here = home.parent / "here"
    value = {
        "a": ["rows.jsonl", "~/rows.jsonl", "org/hub"],
        "b": "mine.py:f",
        "c": "none.py:f",
        "d": 7,
        "e": "",
        "f": ".",
    }
    assert absolute_if_there(value) == {
        "a": [f"{here}/rows.jsonl", f"{home}/rows.jsonl", "org/hub"],
        "b": f"{here}/mine.py:f",
        "c": "none.py:f",
        "d": 7,
        "e": "",
        "f": str(here),
    }
    assert absolute_if_there("x" * 5000) == "x" * 5000  # a text that no file system takes for a name
