"""Engines that join serve once they have the weights; those that leave finish what they have, and nothing else."""

from __future__ import annotations

import asyncio
import logging

import pytest

from rlsys.errors import DeadlineError, WorkerDiedError, WorkerError
from rlsys.orchestrator.router import NEW
from rlsys.orchestrator.supervisor import CHECK_EVERY_S
from tests.unit.orchestrator.made_up_pool import DRAIN_DEADLINE_S, START_S, Scene


async def resize(scene: Scene, wanted: int) -> tuple[str | None, list[str]]:
    said: list[str] = []
    return await scene.scaler.resize(wanted, said.append), said


def test_an_engine_joins_with_the_weights_and_is_replaced_like_others() -> None:
    scene = Scene(1)

    async def scenario() -> None:
        assert await resize(scene, 2) == (None, ["rollout/1 starts"])
        assert asyncio.get_running_loop().time() == pytest.approx(START_S + 1.0)
        assert scene.router.load == {0: 0, 1: 0}
        # What waits for room gets it: both have a cap of 1.
        leases = [await scene.router.reserve(1, (NEW, 0)) for _ in range(2)]
        assert [lease.engine for lease in leases] == [0, 1]
        scene.pool.lose(1, "killed")
        await asyncio.sleep(START_S + 2.0)
        assert scene.router.load == {0: 1, 1: 0}
        assert scene.router.num_lost == 1

    scene.play(scenario)
    joined = [("reserved", 1), ("started", 1), ("welcomed", 1)]
    assert scene.pool.events == [*joined, ("lost", 1), ("started", 1), ("welcomed", 1)]


def test_what_waits_for_room_gets_it_when_an_engine_joins() -> None:
    scene = Scene(1)

    async def scenario() -> None:
        await scene.router.reserve(1, (NEW, 0))
        waiting = asyncio.ensure_future(scene.router.reserve(1, (NEW, 0)))
        await resize(scene, 2)
        assert (await waiting).engine == 1

    scene.play(scenario)


def test_one_that_joins_has_its_share_at_once_and_no_group_is_lost() -> None:
    """At least 80% of it within two steps, of 30 s here, and one broadcast more than without it."""
    scene, served = Scene(), list[tuple[float, int]]()

    async def group(number: int) -> None:
        lease = await scene.router.reserve(1, (NEW, number))
        await asyncio.sleep(1.0)
        lease.release(1)
        served.append((asyncio.get_running_loop().time(), lease.engine))

    async def scenario() -> None:
        groups = [asyncio.ensure_future(group(number)) for number in range(300)]
        assert (await resize(scene, 3))[0] is None
        await asyncio.gather(*groups)

    scene.play(scenario)
    joined = START_S + 1.0
    within = [engine for moment, engine in served if joined < moment <= joined + 60.0]
    assert within.count(2) >= 0.8 * len(within) / 3
    assert len(served) == 300
    assert [event for event, _ in scene.pool.events].count("welcomed") == 1


@pytest.mark.parametrize(
    ("what", "failure"),
    [
        ("rooms", DeadlineError("no room within 100 s")),
        ("starts", DeadlineError("not within 100 s")),
        ("starts", WorkerDiedError("died while starting", "rollout/2")),
        ("welcomes", WorkerDiedError("died in the broadcast", "rollout/2")),
        ("welcomes", WorkerError("computes something else")),
    ],
)
def test_one_that_cannot_join_leaves_nothing_behind_and_is_not_tried_again(what: str, failure: Exception) -> None:
    scene = Scene()
    getattr(scene.pool, what).append(failure)

    async def scenario() -> None:
        why, _ = await resize(scene, 3)
        assert why == f"rollout/2 could not join, and the run goes on as before: {failure}"
        await asyncio.sleep(3 * START_S)
        assert scene.router.load == {0: 0, 1: 0}
        assert scene.pool.alive == set(scene.supervisor.engines) == {0, 1}
        assert scene.router.num_lost == 0
        assert (await resize(scene, 3))[0] is None  # the same number is free again
        assert scene.router.load == {0: 0, 1: 0, 2: 0}

    scene.play(scenario)
    assert scene.pool.events.count(("released", 2)) == 1
    assert scene.pool.events.count(("welcomed", 2)) == 1


def test_one_that_stands_still_while_it_joins_is_found() -> None:
    """A broadcast that waits for it would hold up the run."""
    scene = Scene(1)
    scene.pool.faults = {1: "it is stopped"}

    async def scenario() -> None:
        scene.background.start(scene.supervisor.watch())
        scene.pool.hanging[1] = asyncio.get_running_loop().create_future()
        failure, _ = await resize(scene, 2)
        assert failure is not None
        assert "rollout/1: it is stopped" in failure
        assert asyncio.get_running_loop().time() <= START_S + CHECK_EVERY_S
        assert scene.pool.alive == {0}

    scene.play(scenario)
    assert scene.pool.events == [("reserved", 1), ("started", 1), ("lost", 1), ("released", 1)]


def test_an_engine_moves_once_another_has_joined() -> None:
    scene = Scene(2)

    async def scenario() -> None:
        lease = await scene.router.reserve(1, (NEW, 0))
        moving = [asyncio.ensure_future(scene.scaler.move(engine)) for engine in (0, 1)]
        await asyncio.sleep(START_S + 2.0)
        assert scene.router.load[2] == 0  # it serves, and the one before finishes what it has
        lease.release(1)
        assert await asyncio.gather(*moving) == [None, None]
        assert await scene.scaler.move(1) is None  # it is not there any more

    scene.play(scenario)
    assert set(scene.router.load) == {0, 2}
    assert scene.router.num_lost == 0
    assert [event for event in scene.pool.events if event[0] == "ended"] == [("ended", 0), ("ended", 1)]


def test_an_engine_for_which_none_can_join_stays() -> None:
    scene = Scene(1)
    scene.pool.rooms.append(DeadlineError("no room within 100 s"))

    async def scenario() -> None:
        assert await scene.scaler.move(0) == "no room within 100 s"
        assert scene.router.load == {0: 0}

    scene.play(scenario)


def test_those_that_joined_before_a_failure_leave_again() -> None:
    scene = Scene(1)

    async def scenario() -> None:
        joining = asyncio.ensure_future(resize(scene, 3))
        await asyncio.sleep(START_S + 2.0)  # the first of two has joined
        scene.pool.starts.append(DeadlineError("not within 100 s"))
        failure, said = await joining
        assert failure is not None
        assert said == ["rollout/1 starts", "rollout/2 starts", "rollout/1 leaves, and finishes 0 responses before"]
        assert scene.router.load == {0: 0}
        assert scene.pool.alive == {0}

    scene.play(scenario)
    assert scene.pool.events[-3:] == [("released", 2), ("ended", 1), ("released", 1)]


def test_the_death_of_a_rank_while_an_engine_joins_is_no_failure_of_the_engine() -> None:
    scene = Scene(1)
    scene.pool.welcomes = [WorkerDiedError("learner/0 is gone", "learner/0")]

    async def scenario() -> None:
        await resize(scene, 2)

    with pytest.raises(WorkerDiedError, match="learner/0 is gone"):
        scene.play(scenario)


def test_the_highest_leaves_once_it_has_finished_and_gets_nothing_new() -> None:
    scene = Scene(3)

    async def scenario() -> None:
        leases = [await scene.router.reserve(1, (NEW, 0)) for _ in range(3)]
        leaving = asyncio.ensure_future(resize(scene, 2))
        await asyncio.sleep(10.0)
        assert not leaving.done()
        assert scene.supervisor.engines == [0, 1]
        leases[1].release(1)
        assert (await scene.router.reserve(1, (NEW, 0))).engine == 1
        leases[2].release(1)
        assert await leaving == (None, ["rollout/2 leaves, and finishes 1 responses before"])
        assert scene.router.load == {0: 1, 1: 1}
        assert scene.router.num_lost == 0
        waiting = asyncio.ensure_future(scene.router.reserve(1, (NEW, 0)))
        await asyncio.sleep(1.0)
        assert not waiting.done()
        assert await resize(scene, 3) == (None, ["rollout/2 starts"])  # and it may come back
        assert (await waiting).engine == 2
        leases[2].release(0)  # of its earlier life
        assert scene.router.load == {0: 1, 1: 1, 2: 1}

    scene.play(scenario)
    assert scene.pool.events[:2] == [("ended", 2), ("released", 2)]


def test_one_that_does_not_finish_leaves_without_its_groups(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()

    async def scenario() -> None:
        leases = [await scene.router.reserve(1, (NEW, 0)) for _ in range(2)]
        assert (await resize(scene, 1))[0] is None
        assert asyncio.get_running_loop().time() == pytest.approx(DRAIN_DEADLINE_S)
        leases[1].release(1)  # its group fails, and is sampled elsewhere
        assert scene.router.load == {0: 1}
        await asyncio.sleep(3 * START_S)
        assert scene.router.load == {0: 1}

    with caplog.at_level(logging.WARNING):
        scene.play(scenario)
    assert scene.pool.events == [("lost", 1), ("released", 1)]
    assert scene.router.num_lost == 0
    assert "had not finished 1 responses within 60 s" in caplog.text


def test_one_that_dies_while_it_leaves_is_not_replaced() -> None:
    scene = Scene()

    async def scenario() -> None:
        for _ in range(2):
            await scene.router.reserve(1, (NEW, 0))
        leaving = asyncio.ensure_future(resize(scene, 1))
        await asyncio.sleep(5.0)
        scene.pool.lose(1, "out of memory")
        assert (await leaving)[0] is None
        assert asyncio.get_running_loop().time() == pytest.approx(5.0)
        await asyncio.sleep(3 * START_S)
        assert scene.router.load == {0: 1}
        assert scene.router.num_lost == 1

    scene.play(scenario)
    assert scene.pool.events == [("lost", 1), ("ended", 1), ("released", 1)]


def test_one_that_is_being_replaced_counts_and_comes_back_before_it_leaves() -> None:
    scene = Scene()

    async def scenario() -> None:
        scene.pool.lose(1, "killed")
        await asyncio.sleep(5.0)
        assert (await resize(scene, 2))[1] == []  # nothing to do
        assert (await resize(scene, 1))[0] is None
        assert asyncio.get_running_loop().time() == pytest.approx(START_S + 1.0)
        assert scene.router.load == {0: 0}
        assert scene.supervisor.num_replaced == 1

    scene.play(scenario)
    assert scene.pool.events[-2:] == [("ended", 1), ("released", 1)]


def test_an_engine_joins_while_another_is_being_replaced() -> None:
    scene = Scene()

    async def scenario() -> None:
        scene.pool.lose(0, "killed")
        await asyncio.sleep(5.0)
        assert await resize(scene, 3) == (None, ["rollout/2 starts"])
        assert set(scene.router.load) == {0, 1, 2}

    scene.play(scenario)


def test_the_number_of_one_that_stays_out_is_free() -> None:
    scene = Scene(max_restarts=0)

    async def scenario() -> None:
        scene.pool.lose(0, "a broken card")
        await asyncio.sleep(1.0)
        assert scene.supervisor.engines == [1]
        assert await resize(scene, 2) == (None, ["rollout/0 starts"])
        assert scene.router.load == {1: 0, 0: 0}

    scene.play(scenario)
    assert scene.pool.events[:2] == [("lost", 0), ("released", 0)]


def test_the_run_ends_when_the_last_one_is_lost_and_the_one_that_was_to_join_fails() -> None:
    scene = Scene(1, max_restarts=0)

    async def scenario() -> None:
        scene.pool.starts.append(DeadlineError("not within 100 s"))
        joining = asyncio.ensure_future(resize(scene, 2))
        await asyncio.sleep(5.0)
        scene.pool.lose(0, "a broken card")
        waiting = asyncio.ensure_future(scene.router.reserve(1, (NEW, 0)))
        await asyncio.sleep(5.0)
        assert not waiting.done()  # it may still serve
        await joining
        with pytest.raises(WorkerDiedError, match="no engine is left"):
            await waiting

    scene.play(scenario)
