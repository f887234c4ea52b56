"""Capacity and the choice of a step's groups: cases worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rlsys.errors import ScheduleError
from rlsys.orchestrator.admission import Ledger, Taken


def ids(taken: list[Taken] | None) -> list[int] | None:
    return None if taken is None else [group.group_id for group in taken]


def admit(ledger: Ledger, *groups: int) -> None:
    for group in groups:
        ledger.admit(group)


def complete(ledger: Ledger, *groups: int) -> None:
    for group in groups:
        ledger.complete(group)


def test_capacity_of_a_synchronous_run_is_one_step() -> None:
    ledger = Ledger(2, 0)
    assert ledger.capacity() == 2
    admit(ledger, 0, 1)
    assert ledger.capacity() == 0
    complete(ledger, 1)
    assert ledger.take() is None
    complete(ledger, 0)
    assert ids(ledger.take()) == [0, 1]
    assert ledger.capacity() == 0  # the engines do not have the new weights yet
    ledger.advance(1)
    assert ledger.capacity() == 2


def test_capacity_is_k_more_steps_and_a_take_frees_none_of_it() -> None:
    ledger = Ledger(2, 1)
    assert ledger.capacity() == 4  # (1 + 0 + 1) * 2
    admit(ledger, 0, 1, 2, 3)
    complete(ledger, 2, 3)
    assert ids(ledger.take()) == [2, 3]
    assert ledger.capacity() == 0  # 4 - 2 resolved - 2 outstanding
    ledger.advance(1)
    assert ledger.capacity() == 2  # 6 - 2 - 2


def test_a_resumed_run_starts_with_what_its_version_has_resolved() -> None:
    ledger = Ledger(3, 2, policy_version=5)
    assert ledger.capacity() == 9  # (2 + 5 + 1) * 3 - 5 * 3
    admit(ledger, 40)
    assert ledger.capacity() == 8


def test_long_groups_hold_up_nobody_until_they_are_due() -> None:
    """k=2, B=1: taking n4 at step 1 would leave n1 and n3 for the one slot of step 2."""
    ledger = Ledger(1, 2)
    admit(ledger, 1, 2, 3)
    complete(ledger, 2)
    assert ids(ledger.take()) == [2]
    ledger.advance(1)
    admit(ledger, 4)
    complete(ledger, 4)
    assert ledger.take() is None
    complete(ledger, 3)
    assert ledger.take() == [Taken(3, 1)]
    ledger.advance(2)
    assert ledger.take() is None  # n4 is ready, but n1 is due now
    complete(ledger, 1)
    assert ledger.take() == [Taken(1, 2)]


def test_the_oldest_go_first_whatever_the_order_in_which_they_finished() -> None:
    ledger = Ledger(2, 1)
    admit(ledger, 0, 1, 2, 3)
    complete(ledger, 3, 1, 0)
    assert ids(ledger.take()) == [0, 1]
    ledger.advance(1)
    admit(ledger, 4, 5)
    complete(ledger, 5, 4, 2)
    assert ledger.take() == [Taken(2, 1), Taken(3, 1)]


def test_a_rejected_group_is_replaced() -> None:
    ledger = Ledger(2, 0)
    admit(ledger, 0, 1)
    ledger.reject(0)
    assert ledger.capacity() == 1
    admit(ledger, 2)
    complete(ledger, 2, 1)
    assert ids(ledger.take()) == [1, 2]
    assert (ledger.num_admitted, ledger.num_taken, ledger.num_rejected, ledger.num_burned) == (3, 2, 1, 0)


def test_beyond_the_limit_the_slot_is_burned_until_the_next_step() -> None:
    ledger = Ledger(3, 0, max_rejects_per_step=1)
    admit(ledger, 0, 1, 2)
    ledger.reject(1)
    ledger.reject(0)
    assert ledger.capacity() == 1
    admit(ledger, 3)
    complete(ledger, 3, 2)
    assert ids(ledger.take()) == [2, 3]
    ledger.advance(1)
    assert ledger.capacity() == 3
    admit(ledger, 4, 5, 6)
    ledger.reject(4)
    assert ledger.capacity() == 1  # the limit counts anew
    assert (ledger.num_rejected, ledger.num_burned) == (3, 1)


def test_a_step_all_of_whose_slots_are_burned_is_empty() -> None:
    ledger = Ledger(2, 0, max_rejects_per_step=0)
    admit(ledger, 0, 1)
    ledger.reject(1)
    assert ledger.take() is None
    ledger.reject(0)
    assert ledger.take() == []
    ledger.advance(1)
    assert ledger.capacity() == 2


def test_a_burned_slot_does_not_cost_an_older_group_its_step() -> None:
    """k=1, B=1: the slot burned is group 2's, of step 2; step 1 still belongs to group 1, which is due there."""
    ledger = Ledger(1, 1, max_rejects_per_step=0)
    admit(ledger, 0, 1)
    complete(ledger, 0)
    ledger.take()
    ledger.advance(1)
    admit(ledger, 2)
    ledger.reject(2)
    assert ledger.capacity() == 0
    assert ledger.take() is None
    complete(ledger, 1)
    assert ids(ledger.take()) == [1]
    ledger.advance(2)
    admit(ledger, 3)
    assert ledger.take() == []


def test_a_restarted_group_is_of_the_current_version() -> None:
    ledger = Ledger(1, 1)
    admit(ledger, 0, 1)
    complete(ledger, 1)
    ledger.take()
    ledger.advance(1)
    admit(ledger, 2)
    complete(ledger, 2)
    assert ledger.take() is None  # group 0 is due
    ledger.restart(0)
    assert ledger.take() == [Taken(2, 0)]
    ledger.advance(2)
    complete(ledger, 0)
    assert ledger.take() == [Taken(0, 1)]


def test_oversampling_draws_more_and_trains_all_that_is_accepted() -> None:
    ledger = Ledger(4, 0, oversample=1.5)
    assert ledger.capacity() == 6
    admit(ledger, *range(6))
    complete(ledger, 5, 3, 2, 1)
    assert ledger.take() is None  # B are accepted, but two still run
    ledger.reject(0)
    assert ledger.capacity() == 0  # 5 for 4 slots
    complete(ledger, 4)
    assert ids(ledger.take()) == [1, 2, 3, 4, 5]
    ledger.advance(1)
    assert ledger.capacity() == 6


def test_oversampling_draws_again_when_too_few_are_left() -> None:
    ledger = Ledger(4, 0, oversample=1.5)
    admit(ledger, *range(6))
    for group in (0, 1, 2):
        ledger.reject(group)
    assert ledger.capacity() == 2  # one is missing: ceil(1 * 1.5)
    complete(ledger, 3, 4, 5)
    assert ledger.take() is None
    admit(ledger, 6, 7)
    complete(ledger, 6, 7)
    assert ids(ledger.take()) == [3, 4, 5, 6, 7]


def test_oversampling_stays_at_the_factor_asked_for() -> None:
    assert Ledger(100, 0, oversample=1.1).capacity() == 110  # 100 * 1.1 is a little more than 110


def test_a_synchronous_step_waits_for_groups_that_no_engine_had_room_for() -> None:
    """Else the size of the step would depend on the engines."""
    ledger = Ledger(2, 0, oversample=1.5)
    admit(ledger, 0, 1)
    complete(ledger, 0, 1)
    assert ledger.take() is None
    admit(ledger, 2)
    complete(ledger, 2)
    assert ids(ledger.take()) == [0, 1, 2]


def test_a_rejected_group_that_was_one_too_many_burns_no_slot() -> None:
    ledger = Ledger(2, 0, oversample=1.5, max_rejects_per_step=0)
    admit(ledger, 0, 1, 2)
    ledger.reject(0)
    assert (ledger.num_rejected, ledger.num_burned) == (1, 0)
    ledger.reject(1)
    assert (ledger.num_rejected, ledger.num_burned) == (2, 1)
    complete(ledger, 2)
    assert ids(ledger.take()) == [2]


def test_with_more_in_flight_than_there_are_slots_a_step_waits_for_no_more_than_it_takes() -> None:
    """8 groups are due at step 1: 2 could be left for it, but 4 more will be whatever step 0 takes."""
    ledger = Ledger(2, 1, oversample=2.0)
    admit(ledger, *range(8))
    complete(ledger, 6, 7)
    assert ids(ledger.take()) == [6, 7]


def test_surplus_stays_for_later_steps_and_is_trained_when_it_is_due() -> None:
    ledger = Ledger(2, 1, oversample=1.5)
    admit(ledger, *range(6))
    complete(ledger, *range(6))
    assert ids(ledger.take()) == [0, 1]
    ledger.advance(1)
    assert ledger.capacity() == 0  # 4 for the 4 slots of steps 1 and 2
    assert ids(ledger.take()) == [2, 3, 4, 5]  # all due now
    assert ledger.capacity() == 3  # nothing for the 2 slots of step 2
    ledger.advance(2)
    assert ledger.capacity() == 5  # and for two more of step 3, less the one too many


@pytest.mark.parametrize(
    ("misuse", "names"),
    [
        (lambda ledger: ledger.complete(7), "group 7 is not running: it was never admitted"),
        (lambda ledger: ledger.complete(0), "group 0 is not running: it is already complete, rejected or taken"),
        (lambda ledger: ledger.reject(0), "group 0 is not running"),
        (lambda ledger: ledger.restart(0), "group 0 is not running"),
        (lambda ledger: ledger.admit(1), "group 1 admitted after group 1"),
        (lambda ledger: admit(ledger, 2, 3), "group 3 cannot be admitted: no capacity at version 1"),
        (lambda ledger: ledger.advance(2), "cannot advance to version 2: the step of version 1 is not taken"),
        (lambda ledger: ledger.advance(1), "cannot advance to version 1"),
    ],
)
def test_misuse_is_an_error_that_names_the_group(misuse: Any, names: str) -> None:
    ledger = Ledger(1, 1)
    admit(ledger, 0, 1)
    complete(ledger, 0)
    ledger.take()
    ledger.advance(1)
    with pytest.raises(ScheduleError, match=names):
        misuse(ledger)


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_step_is_taken_once(max_staleness: int) -> None:
    ledger = Ledger(1, max_staleness)
    admit(ledger, *range(1 + max_staleness))
    complete(ledger, *range(1 + max_staleness))
    ledger.take()
    with pytest.raises(ScheduleError, match="step of version 0 was already taken"):
        ledger.take()


@pytest.mark.parametrize(
    "sizes",
    [
        {"prompts_per_step": 0},
        {"max_staleness": -1},
        {"policy_version": -1},
        {"oversample": 0.5},
        {"max_rejects_per_step": -1},
    ],
)
def test_sizes_that_make_no_sense_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(sizes))):
        Ledger(**({"prompts_per_step": 2, "max_staleness": 1} | sizes))
