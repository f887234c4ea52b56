"""Workers of a real Ray find the modules of the driver's directory, and none of them replaces a library."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsys.config.schema import ClusterConfig
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.room import Demand
from tests.integration.runs import wait


def test_a_module_of_the_directory_is_found_and_replaces_no_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Libraries, and modules of Python's own: one that Ray has loaded by then, and one that it has not.
    for library in ("rich", "torch", "random", "colorsys"):
        (tmp_path / f"{library}.py").write_text("raise ImportError('the library comes first')\n")
    (tmp_path / "mine.py").write_text(
        "import colorsys, random, rich, torch\n\n\ndef score(completions, **_):\n    return [3.0] * len(completions)\n"
    )
    monkeypatch.chdir(tmp_path)

    class Worker:  # pickled by value, for the tests are in no folder of the worker's
        def score(self) -> tuple[float, list[float | None]]:
            from rlsys.registry import load_external
            from rlsys.scoring.call import RewardRequest
            from rlsys.scoring.process import RewardProcess

            process = RewardProcess({"name": "mine:score"}, call_deadline_s=60.0, row_deadline_s=60.0)
            try:
                parts, _ = process.score(RewardRequest(["?"], ["a"], [[1]], {}, step=1))
            finally:
                process.close()
            return load_external("mine:score")(completions=["a"])[0], [part.value for part in parts]

    cluster = Cluster(ClusterConfig())
    try:
        cluster.connect([Demand("room", num_cpus=1)])
        worker = cluster.start(Worker, Demand("a", 0.0))
        found = wait(cluster.calls.gather({"a": worker.score.remote()}, what="asking", deadline_s=120))
    finally:
        cluster.close()
    assert found == {"a": (3.0, [3.0])}
