"""Engines that are lost come back, at most so often, and never before they have the weights."""

from __future__ import annotations

import asyncio
import logging

import pytest

from rlsys.errors import DeadlineError, WorkerDiedError, WorkerError
from rlsys.orchestrator.router import NEW
from rlsys.orchestrator.supervisor import CHECK_EVERY_S
from rlsys.runtime.restarts import HOUR_S
from tests.unit.orchestrator.made_up_pool import START_S, Scene


def test_the_others_serve_until_it_has_the_weights_again(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene()

    async def scenario() -> None:
        scene.pool.lose(0, "out of memory")
        assert scene.router.load == {1: 0}
        assert (scene.router.num_lost, scene.supervisor.num_replaced) == (1, 0)
        await asyncio.sleep(START_S + 0.5)
        assert scene.router.load == {1: 0}  # started, but with the weights of the beginning
        await asyncio.sleep(1.0)
        assert scene.router.load == {1: 0, 0: 0}
        assert (scene.router.num_lost, scene.supervisor.num_replaced) == (1, 1)

    with caplog.at_level(logging.WARNING):
        scene.play(scenario)
    assert scene.pool.events == [("lost", 0), ("started", 0), ("welcomed", 0)]
    assert "rollout/0 was lost" in caplog.text
    assert "out of memory" in caplog.text
    assert "rollout/0 serves again, 21.0 s after" in caplog.text


@pytest.mark.parametrize(
    ("starts", "welcomes"),
    [
        ([DeadlineError("not within 100 s")], []),
        ([WorkerDiedError("died while starting", "rollout/0")], []),
        ([], [WorkerDiedError("died in the broadcast", "rollout/0")]),
        ([], [WorkerError("computes something else")]),
    ],
)
def test_a_replacement_that_fails_is_replaced_itself(starts: list[Exception], welcomes: list[Exception]) -> None:
    scene = Scene()
    scene.pool.starts, scene.pool.welcomes = starts, welcomes

    async def scenario() -> None:
        scene.pool.lose(0, "killed")
        await asyncio.sleep(3 * START_S)
        assert scene.router.load == {1: 0, 0: 0}
        assert scene.pool.alive == {0, 1}

    scene.play(scenario)
    assert scene.pool.events[-1] == ("welcomed", 0)


def test_all_may_be_lost_and_groups_wait() -> None:
    scene = Scene()

    async def scenario() -> None:
        scene.pool.lose(0, "killed")
        scene.pool.lose(1, "killed")
        lease = await scene.router.reserve(1, (NEW, 0))
        assert asyncio.get_running_loop().time() == pytest.approx(START_S + 1.0)
        assert lease.engine in (0, 1)

    scene.play(scenario)


def test_one_that_is_lost_too_often_stays_out_and_the_last_one_ends_the_run(caplog: pytest.LogCaptureFixture) -> None:
    scene = Scene(max_restarts=2)

    async def lose(engine: int) -> None:
        for _ in range(3):
            scene.pool.lose(engine, "a broken card")
            await asyncio.sleep(2 * START_S)

    async def scenario() -> None:
        await lose(0)
        assert scene.router.load == {1: 0}
        await lose(1)
        with pytest.raises(WorkerDiedError, match=r"no engine is left .* a broken card"):
            await scene.router.reserve(1, (NEW, 0))

    with caplog.at_level(logging.ERROR):
        scene.play(scenario)
    assert "rollout/0 stays out of service: cluster.max_restarts=2" in caplog.text


def test_what_was_lost_more_than_an_hour_ago_does_not_count() -> None:
    scene = Scene(max_restarts=1)

    async def scenario() -> None:
        for _ in range(4):
            scene.pool.lose(0, "killed")
            await asyncio.sleep(HOUR_S + 1.0)
            assert 0 in scene.router.load

    scene.play(scenario)


def test_the_death_of_a_rank_in_the_broadcast_is_nothing_that_a_new_engine_mends() -> None:
    scene = Scene()
    scene.pool.welcomes = [WorkerDiedError("learner/0 is gone", "learner/0")]

    async def scenario() -> None:
        scene.pool.lose(0, "killed")
        await asyncio.sleep(3 * START_S)

    with pytest.raises(WorkerDiedError, match="learner/0 is gone"):
        scene.play(scenario)


def test_an_engine_that_stands_still_is_lost_and_one_that_is_slow_is_not() -> None:
    scene = Scene()
    scene.pool.faults = {1: "it has made no step for 10 s"}

    async def scenario() -> None:
        scene.background.start(scene.supervisor.watch())
        await asyncio.sleep(CHECK_EVERY_S + 1.0)
        assert scene.router.load == {0: 0}
        await asyncio.sleep(2 * START_S)
        assert scene.router.load == {0: 0, 1: 0}

    scene.play(scenario)
    assert scene.pool.events == [("lost", 1), ("started", 1), ("welcomed", 1)]
