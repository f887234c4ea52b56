"""Folders of the user's own come after everything that is installed, whatever is done to the path later."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = """
import sys
from rlsys.registry import search_last, searched_first
mine, library = sys.argv[1:]
sys.path.insert(0, mine)
search_last(mine)
sys.path.append(library)  # as setuptools does
import early, namespace.part
assert early.WHOSE == namespace.part.WHOSE == "the library's", early
with searched_first(mine):
    import late
assert late.WHOSE == "mine"
import later, own
assert later.WHOSE == "the library's"
assert own.WHOSE == "mine"
"""


def _write(folder: Path, whose: str, *names: str) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"WHOSE = {whose!r}\n")


def test_what_is_appended_to_the_path_later_and_packages_without_a_file_come_before(tmp_path: Path) -> None:
    mine, library = tmp_path / "mine", tmp_path / "library"
    _write(mine, "mine", "early.py", "namespace.py", "late.py", "later.py", "own.py")
    _write(library, "the library's", "early.py", "namespace/part.py", "late.py", "later.py")
    result = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(mine), str(library)], capture_output=True, text=True, timeout=60
    )
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("theirs", [True, False])
def test_a_folder_of_the_user_s_path_stays_where_it_is(tmp_path: Path, theirs: bool) -> None:
    script = "import sys; from rlsys.registry import searched_first\n"
    script += "with searched_first(sys.argv[1]): pass\nprint(sys.path.index(sys.argv[1]) == len(sys.path) - 1)"
    path = os.pathsep.join([str(tmp_path)] * theirs + [folder for folder in sys.path if folder])
    result = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)],
        env={"PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert result.stdout.strip() == str(not theirs), result.stderr
