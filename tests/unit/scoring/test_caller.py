"""A reward's process on another node knows the variables and the modules of the shell that the run was started in."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rlsys.runtime.cluster import CODE_FOLDERS
from rlsys.scoring.call import RewardRequest
from rlsys.scoring.caller import Caller
from rlsys.scoring.process import RewardProcess


def test_modules_and_variables_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, elsewhere = tmp_path / "mine", tmp_path / "elsewhere"
    for folder in (mine, elsewhere):
        folder.mkdir()
    (mine / "my_rewards.py").write_text(
        "import os\ndef score(completions, **_):\n    return [float(os.environ['MY_KEY'])] * len(completions)\n"
    )
    for folder in (mine, elsewhere):
        (folder / "json.py").write_text("raise ImportError('the library comes first')\n")
    with monkeypatch.context() as there:
        there.chdir(mine)
        there.setenv("MY_KEY", "3")
        there.setenv("RAY_ADDRESS", "head:6379")
        there.setenv("CUDA_VISIBLE_DEVICES", "7")
        caller = Caller.here()
    assert "MY_KEY" not in repr(caller)
    monkeypatch.chdir(elsewhere)
    monkeypatch.setenv("HOME", "/home/of/this/node")
    with monkeypatch.context() as here:
        here.setenv(CODE_FOLDERS, str(mine))  # `Cluster` sets it in every worker
        here.setenv("MY_KEY", "")
        here.delenv("MY_KEY")
        caller.apply()
        assert os.environ["HOME"] == "/home/of/this/node"  # what a node has stays
        assert {"RAY_ADDRESS", "CUDA_VISIBLE_DEVICES"} & set(caller.environment) == set()
        process = RewardProcess({"name": "my_rewards:score"}, call_deadline_s=60.0, row_deadline_s=60.0)
        try:
            parts, _ = process.score(RewardRequest(["?"], ["a"], [[1]], {}, step=1))
        finally:
            process.close()
    assert [part.value for part in parts] == [3.0]
