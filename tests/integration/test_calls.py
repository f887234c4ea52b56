"""Waiting for workers of a real Ray: the failure that is reported, and the deadline of every wait."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator

import pytest

from rlsys.config.schema import ClusterConfig
from rlsys.errors import ConfigError, DeadlineError, WorkerDiedError, WorkerError
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.room import Demand, Room
from tests.integration.runs import wait


class Peer:
    """A rank of a group."""

    def variable(self, name: str) -> str | None:
        return os.environ.get(name)

    def answer(self) -> str:
        return "here"

    def lose_the_connection(self, after_s: float) -> None:
        time.sleep(after_s)
        raise RuntimeError("Connection closed by peer")

    def die(self, after_s: float) -> None:
        time.sleep(after_s)
        os._exit(1)

    def sleep(self, seconds: float) -> None:
        time.sleep(seconds)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    opened = Cluster(ClusterConfig())
    opened.connect([Demand("room", num_cpus=8)])
    yield opened
    opened.close()


def test_results_keep_their_names(cluster: Cluster) -> None:
    peer = cluster.start(Peer, Demand("a", 0.0))
    assert wait(cluster.calls.gather({"a": peer.answer.remote()}, what="asking", deadline_s=60)) == {"a": "here"}


def test_a_death_is_raised_before_the_broken_connections_it_causes(cluster: Cluster) -> None:
    dying, peer = (cluster.start(Peer, Demand(name, 0.0)) for name in ("learner/1", "learner/0"))
    wait(cluster.calls.gather({"0": dying.answer.remote(), "1": peer.answer.remote()}, what="asking", deadline_s=60))
    calls = {"learner/0": peer.lose_the_connection.remote(0.1), "learner/1": dying.die.remote(0.6)}
    with pytest.raises(WorkerDiedError, match="policy update: learner/1 is gone"):
        wait(cluster.calls.gather(calls, what="policy update", deadline_s=60))


def test_a_failure_does_not_wait_for_the_healthy(cluster: Cluster) -> None:
    failing, slow = (cluster.start(Peer, Demand(name, 0.0)) for name in ("a", "b"))
    wait(cluster.calls.gather({"a": failing.answer.remote(), "b": slow.answer.remote()}, what="asking", deadline_s=60))
    started = time.monotonic()
    calls = {"a": failing.lose_the_connection.remote(0.0), "b": slow.sleep.remote(600)}
    with pytest.raises(WorkerError, match="work: a failed: RuntimeError: Connection closed"):
        wait(cluster.calls.gather(calls, what="work", deadline_s=500))
    assert time.monotonic() - started < 100
    cluster.kill(slow)


def test_who_is_late_is_named(cluster: Cluster) -> None:
    quick, slow = (cluster.start(Peer, Demand(name, 0.0)) for name in ("a", "b"))
    wait(cluster.calls.gather({"a": quick.answer.remote(), "b": slow.answer.remote()}, what="asking", deadline_s=60))
    with pytest.raises(DeadlineError, match=r"work: no answer within 0.5 s from b$"):
        wait(
            cluster.calls.gather({"a": quick.answer.remote(), "b": slow.sleep.remote(30)}, what="work", deadline_s=0.5)
        )


def test_workers_that_no_node_could_hold_are_refused_with_both_sides(cluster: Cluster) -> None:
    with pytest.raises(ConfigError, match=r"Asked: rollout/0: 99 CPU, 1 GPU\. Have: node 0: \d+ CPU, 0 GPU"):
        wait(Room([Demand("rollout/0", 99.0, 1.0)]).wait(60.0))


def test_room_that_others_use_is_waited_for_until_the_deadline(cluster: Cluster) -> None:
    """The module's own cluster has reserved eight of its nine CPUs."""
    with pytest.raises(DeadlineError, match=r"within 0.5 s. Asked: learner/0: 5 CPU.*Free in the cluster now: \d CPU"):
        wait(Room([Demand("learner/0", 5.0)]).wait(0.5))


def test_a_worker_that_joins_has_room_of_its_own_which_is_given_back(cluster: Cluster) -> None:
    wait(cluster.room.add(Demand("rollout/7", 1.0), 10.0))
    with pytest.raises(DeadlineError):
        wait(cluster.room.add(Demand("rollout/8", 1.0), 0.5))
    assert cluster.room.options("rollout/8") == {}  # nothing is left of it
    peer = cluster.start(Peer, Demand("rollout/7", 1.0))
    wait(cluster.calls.result(peer.answer.remote(), who="rollout/7", what="asking", deadline_s=60))
    cluster.kill(peer)
    cluster.release("rollout/7")
    wait(cluster.room.add(Demand("rollout/8", 1.0), 10.0))
    cluster.release("rollout/8")


def test_a_cluster_that_is_not_there() -> None:
    with pytest.raises(ConfigError, match=r"no Ray cluster answers at '127.0.0.1:1' \(from cluster.address\)"):
        Cluster(ClusterConfig(address="127.0.0.1:1")).connect([])


def test_a_local_ray_has_a_token_of_its_own(cluster: Cluster) -> None:
    """Ray's own would lie in the home folder, readable by everyone on the machine."""
    token = os.environ["RAY_AUTH_TOKEN"]
    assert (os.environ["RAY_AUTH_MODE"], len(token)) == ("token", 64)
    peer = cluster.start(Peer, Demand("peer", 0.0))
    seen = wait(cluster.calls.result(peer.variable.remote("RAY_AUTH_TOKEN"), who="peer", what="asking", deadline_s=60))
    assert seen == token
