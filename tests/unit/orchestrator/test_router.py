"""Whole groups go to the engine with the least load for its size, and whoever waits is served in order."""

from __future__ import annotations

import asyncio
import random

import pytest

from rlsys.errors import ScheduleError, WorkerDiedError
from rlsys.orchestrator.router import EVALUATION, NEW, RESTART, Lease, Router


def engine_of(lease: Lease | None) -> int | None:
    return None if lease is None else lease.engine


def reserved(router: Router, *sizes: int) -> list[int | None]:
    return [engine_of(router.try_reserve(size)) for size in sizes]


def release(router: Router, engine: int, num_samples: int) -> None:
    Lease(router, engine, 0, num_samples).release(num_samples)


def test_the_least_loaded_engine_for_its_cap_and_the_lowest_among_equals() -> None:
    router = Router([4, 8, 4])
    assert reserved(router, 2, 2, 2, 2, 2) == [0, 1, 2, 1, 0]  # loads over caps: 0, 0, 0; 1/2, 1/4, 1/2
    assert router.load == {0: 4, 1: 4, 2: 2}


def test_no_room_is_none_until_trajectories_finish() -> None:
    router = Router([4, 4])
    assert reserved(router, 3, 3, 3) == [0, 1, None]
    release(router, 1, 1)
    assert router.try_reserve(3) is None
    release(router, 1, 1)
    assert reserved(router, 3) == [1]


def test_a_group_larger_than_the_cap_gets_an_idle_engine() -> None:
    router = Router([2])
    assert reserved(router, 8, 1) == [0, None]
    release(router, 0, 8)
    assert reserved(router, 8) == [0]


def test_an_engine_with_less_load_but_no_room_is_passed_over() -> None:
    router = Router([2, 8])
    assert reserved(router, 1, 5) == [0, 1]
    assert reserved(router, 3) == [1]  # engine 0 has the smaller load, 1/2 against 5/8, but room for one only


def test_leaving_a_lease_gives_back_what_is_left_of_it() -> None:
    router = Router([4])
    lease = router.try_reserve(4)
    assert lease is not None
    with lease:
        lease.release(1)
        assert router.load == {0: 3}
    assert router.load == {0: 0}


def test_an_engine_that_is_gone_gets_nothing_and_what_ran_there_is_forgotten() -> None:
    router = Router([4, 4])
    lease = router.try_reserve(4)
    assert lease is not None
    router.remove(0)
    router.remove(0)
    lease.release(4)
    assert router.load == {1: 0}
    assert reserved(router, 2, 2, 2) == [1, 1, None]


def test_an_engine_that_leaves_gets_nothing_new_and_is_waited_for() -> None:
    async def main() -> None:
        router = Router([4, 4])
        assert reserved(router, 1, 1) == [0, 1]
        draining = asyncio.ensure_future(router.drain(1))
        await asyncio.sleep(0)
        assert reserved(router, 1, 1, 1, 1) == [0, 0, 0, None]
        assert not draining.done()
        release(router, 1, 1)
        await draining
        assert reserved(router, 1) == [None]  # idle, and still not to be used
        router.retire(1)
        assert (router.load, router.num_lost) == ({0: 4}, 0)

    asyncio.run(main())


def test_numbers_need_not_follow_each_other_and_one_that_joins_has_the_cap_of_the_last() -> None:
    router = Router([8, 2])
    router.retire(0)
    router.add(5)
    assert reserved(router, 2, 2, 1) == [1, 5, None]


def test_an_engine_that_is_back_has_nothing_running_whatever_ran_there_before() -> None:
    router = Router([4])
    before = router.try_reserve(3)
    assert before is not None
    router.remove(0)
    router.add(0)
    now = router.try_reserve(2)
    assert now is not None
    before.release(1)
    before.__exit__(None, None, None)
    assert router.load == {0: 2}
    now.__exit__(None, None, None)
    assert router.load == {0: 0}


def test_groups_wait_for_an_engine_that_comes_back() -> None:
    async def scenario() -> None:
        router = Router([2])
        router.remove(0)
        waiting = asyncio.ensure_future(router.reserve(2, (NEW, 0)))
        await asyncio.sleep(0)
        assert not waiting.done()
        router.add(0)
        assert (await waiting).engine == 0
        assert router.load == {0: 2}

    asyncio.run(scenario())


def test_when_no_engine_comes_back_there_is_nothing_to_wait_for() -> None:
    async def scenario() -> None:
        router = Router([2])
        router.try_reserve(2)
        waiting = asyncio.ensure_future(router.reserve(1, (NEW, 0)))
        await asyncio.sleep(0)
        router.remove(0)
        router.close("rollout/0 is gone: out of memory")
        with pytest.raises(WorkerDiedError, match=r"no engine is left .* rollout/0 is gone: out of memory"):
            await waiting
        with pytest.raises(WorkerDiedError, match=r"no engine is left .* rollout/0 is gone: out of memory"):
            await router.reserve(1, (NEW, 0))

    asyncio.run(scenario())


def test_restarts_go_first_then_evaluation_and_the_older_group_of_each() -> None:
    async def scenario() -> None:
        router, order = Router([2]), []
        router.try_reserve(2)

        async def wait(*key: int) -> None:
            lease = await router.reserve(2, (key[0], key[1]))
            order.append(key)
            lease.release(2)

        keys = [(NEW, 0), (EVALUATION, 4), (EVALUATION, 3), (RESTART, 9), (RESTART, 7)]
        tasks = [asyncio.ensure_future(wait(*key)) for key in keys]
        await asyncio.sleep(0)
        assert router.num_restarting == 2
        release(router, 0, 2)
        await asyncio.gather(*tasks)
        assert order == sorted(keys)

    asyncio.run(scenario())


def test_a_small_group_does_not_overtake_a_large_one() -> None:
    async def scenario() -> None:
        router = Router([4])
        router.try_reserve(3)
        large = asyncio.ensure_future(router.reserve(3, (RESTART, 1)))
        small = asyncio.ensure_future(router.reserve(1, (RESTART, 2)))
        await asyncio.sleep(0)
        assert not large.done()
        assert not small.done()
        release(router, 0, 2)
        assert engine_of(await large) == 0
        assert not small.done()  # 4 of 4 run
        release(router, 0, 1)
        assert engine_of(await small) == 0

    asyncio.run(scenario())


def test_room_is_not_lost_with_whoever_stops_waiting_for_it() -> None:
    async def scenario() -> None:
        router = Router([2])
        router.try_reserve(2)
        gone, granted_too_late, last = (asyncio.ensure_future(router.reserve(2, (NEW, i))) for i in range(3))
        await asyncio.sleep(0)
        gone.cancel()
        await asyncio.sleep(0)
        release(router, 0, 2)  # granted, and cancelled before the waiter runs again
        granted_too_late.cancel()
        assert engine_of(await last) == 0
        assert granted_too_late.cancelled()

    asyncio.run(scenario())


def test_it_chooses_as_a_search_over_all_engines_does() -> None:
    chance = random.Random(0)
    for caps in ([4, 4, 4], [3, 5, 9, 2]):
        router, held = Router(caps), []
        for _ in range(3_000):
            size = chance.randint(1, 3)
            load = router.load
            room = [e for e in load if load[e] == 0 or load[e] + size <= caps[e]]
            expected = min(room, key=lambda e: (load[e] / caps[e], e)) if room else None
            lease = router.try_reserve(size)
            assert engine_of(lease) == expected
            if lease is not None:
                held.append((lease, size))
            while held and (lease is None or chance.random() < 0.4):
                lease, size = held.pop(chance.randrange(len(held)))
                lease.release(size)


def test_impossible_sizes_are_errors() -> None:
    lease = Router([4, 4]).try_reserve(2)
    assert lease is not None
    with pytest.raises(ScheduleError, match="engine 0 cannot finish 3 trajectories of a group: 2 of it run"):
        lease.release(3)
    with pytest.raises(ValueError, match="caps="):
        Router([])
    with pytest.raises(ValueError, match="caps="):
        Router([4, 0])
