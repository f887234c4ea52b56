"""A cluster of three nodes on this machine, one of which announces its end and then goes."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import ray

from rlsys.config.schema import ClusterConfig
from rlsys.errors import LostDataError
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.room import Demand
from tests.integration.runs import SMALL, read_metrics, wait
from tests.integration.test_recovery import check_ledger

RAY = str(Path(sys.executable).parent / "ray")
STEPS = 80
SCORE = "    return [float(len(text)) for text in completions]\n"


@pytest.fixture
def nodes() -> Iterator[Any]:
    """A head and another node with room for two workers each, and one with room for all four."""
    from ray.cluster_utils import Cluster as Nodes

    cluster = Nodes(initialize_head=True, head_node_args={"num_cpus": 2})
    cluster.add_node(num_cpus=2)
    yield cluster
    cluster.shutdown()


class Holder:
    """A worker that leaves its results on its node, and one that reads them."""

    def make(self) -> np.ndarray:
        return np.zeros(2**20)

    def read(self, values: np.ndarray) -> int:
        return len(values)


@pytest.mark.long
def test_what_a_node_held_is_reported_as_lost_with_it(nodes: Any) -> None:
    """A run goes on from its checkpoint then: neither the worker that read it nor the one that made it has failed."""
    leaving = nodes.add_node(num_cpus=4)
    cluster = Cluster(ClusterConfig(address=nodes.address))
    cluster.connect([Demand("maker", 4.0), Demand("reader", 1.0)])
    try:
        wait(cluster.room.wait(60))
        maker, reader = (cluster.start(Holder, Demand(name, cpus)) for name, cpus in (("maker", 4.0), ("reader", 1.0)))
        made = maker.make.remote()
        # Its size alone: what is read to the driver stays on the driver's node too.
        ray.wait([made], timeout=60, fetch_local=False)
        assert wait(cluster.calls.result(reader.read.remote(np.zeros(3)), who="r", what="a try", deadline_s=60)) == 3
        nodes.remove_node(leaving, allow_graceful=False)
        with pytest.raises(LostDataError, match="training: reader got something that is lost"):
            wait(cluster.calls.result(reader.read.remote(made), who="reader", what="training", deadline_s=100))
        with pytest.raises(LostDataError, match="writing: what the object store held is lost"):
            wait(cluster.calls.read(made, who="the object store", what="writing"))
    finally:
        cluster.close()


@pytest.mark.long
@pytest.mark.timeout(900)
def test_what_works_on_a_node_that_ends_moves_and_the_run_goes_on(nodes: Any, tmp_path: Path) -> None:
    leaving = nodes.add_node(num_cpus=4)
    nodes.wait_for_nodes()
    log = tmp_path / "log"
    environment = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
    # Half a second and more per step: the moves take some.
    (tmp_path / "slow.py").write_text("import time\ndef score(completions, **_):\n    time.sleep(0.4)\n" + SCORE)
    more = [
        "rewards=[{name: 'slow.py:score'}]",
        "algorithm.kl.coef=0.01",
        "train.max_staleness=1",
        f"train.num_steps={STEPS}",
        "checkpoint.every_s=0",
    ]
    places = [f"cluster.address={nodes.address}", f"model.cache_dir={tmp_path}/models", f"run_dir={tmp_path}/run"]
    command = [sys.executable, "-m", "rlsys.cli", "train", *SMALL, *more, *places]
    with log.open("w") as output:
        run = subprocess.Popen(command, cwd=tmp_path, env=environment, stdout=output, stderr=output)

    def step() -> int:
        return max((row["step"] for row in read_metrics(tmp_path / "run")), default=0)

    def until(done: Callable[[], bool]) -> None:
        while not done():
            assert run.poll() is None, log.read_text()
            time.sleep(0.2)

    try:
        until(lambda: (tmp_path / "run" / "metrics.jsonl").exists() and step() >= 3)
        reason = ["--reason", "DRAIN_NODE_REASON_PREEMPTION", "--reason-message", "spot"]
        drain = [RAY, "drain-node", "--address", nodes.address, "--node-id", leaving.node_id, *reason]
        subprocess.run([*drain, "--deadline-remaining-seconds", "300"], check=True, timeout=60)
        until(lambda: log.read_text().count(" has moved") == 3)
        moved_at = step()
        until(lambda: step() >= moved_at + 3)
        nodes.remove_node(leaving, allow_graceful=False)
        assert run.wait(timeout=500) == 0, log.read_text()
    finally:
        run.kill()
        run.wait()
    said = log.read_text()
    assert "ends in 2" in said
    for worker in ("rollout/0", "scoring/0", "reference/0"):
        assert f"{worker} has moved" in said
    assert "its learner ranks cannot move: from now on every step is saved until it ends" in said
    assert said.count("the run is started again, from its newest checkpoint") == 1
    resumed = next(line for line in said.splitlines() if "resuming from" in line)
    assert int(resumed.rpartition("after step ")[2].split()[0]) >= moved_at + 2  # not where it began to move
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(STEPS + 1))
    check_ledger(tmp_path / "run", STEPS)
