"""Capacity and the choice of a step's groups: cases worked by hand."""

from __future__ import annotations

from typing import Any

import pytest

from rlsys.errors import ScheduleError
from rlsys.orchestrator.admission import Admission


def admit(admission: Admission, *groups: int) -> None:
    for group in groups:
        assert admission.admit() == group


def complete(admission: Admission, *groups: int) -> None:
    for group in groups:
        admission.complete(group)


def test_capacity_of_a_synchronous_run_is_one_step() -> None:
    admission = Admission(2, 0)
    assert admission.capacity() == 2
    admit(admission, 0, 1)
    assert admission.capacity() == 0
    complete(admission, 1)
    assert admission.take() is None
    complete(admission, 0)
    assert admission.take() == [0, 1]
    assert admission.capacity() == 0  # the engines do not have the new weights yet
    admission.advance(1)
    assert admission.capacity() == 2


def test_capacity_is_k_more_steps_and_a_take_frees_none_of_it() -> None:
    admission = Admission(2, 1)
    assert admission.capacity() == 4  # (1 + 0 + 1) * 2
    admit(admission, 0, 1, 2, 3)
    complete(admission, 2, 3)
    assert admission.take() == [2, 3]
    assert admission.capacity() == 0  # 4 - 2 resolved - 2 outstanding
    admission.advance(1)
    assert admission.capacity() == 2  # 6 - 2 - 2


def test_a_resumed_run_starts_with_what_its_version_has_resolved() -> None:
    admission = Admission(3, 2, policy_version=5)
    assert admission.capacity() == 9  # (2 + 5 + 1) * 3 - 5 * 3
    admit(admission, 0)
    assert admission.capacity() == 8


def test_long_groups_hold_up_nobody_until_they_are_due() -> None:
    """k=2, B=1: taking group 3 at step 1 would leave groups 0 and 2 for the one slot of step 2."""
    admission = Admission(1, 2)
    admit(admission, 0, 1, 2)
    complete(admission, 1)
    assert admission.take() == [1]
    admission.advance(1)
    admit(admission, 3)
    complete(admission, 3)
    assert admission.take() is None
    complete(admission, 2)
    assert admission.take() == [2]
    admission.advance(2)
    assert admission.take() is None  # group 3 is ready, but group 0 is due now
    complete(admission, 0)
    assert admission.take() == [0]


def test_the_oldest_go_first_whatever_the_order_in_which_they_finished() -> None:
    admission = Admission(2, 1)
    admit(admission, 0, 1, 2, 3)
    complete(admission, 3, 1, 0)
    assert admission.take() == [0, 1]
    admission.advance(1)
    admit(admission, 4, 5)
    complete(admission, 5, 4, 2)
    assert admission.take() == [2, 3]


def test_a_rejected_group_is_replaced() -> None:
    admission = Admission(2, 0)
    admit(admission, 0, 1)
    admission.reject(0)
    assert admission.capacity() == 1
    admit(admission, 2)
    complete(admission, 2, 1)
    assert admission.take() == [1, 2]
    assert (admission.num_admitted, admission.num_taken, admission.num_rejected, admission.num_skipped) == (3, 2, 1, 0)


def test_beyond_the_limit_the_slot_is_skipped_until_the_next_step() -> None:
    admission = Admission(3, 0, max_extra_per_step=1)
    admit(admission, 0, 1, 2)
    admission.reject(1)
    admission.reject(0)
    assert admission.capacity() == 1
    admit(admission, 3)
    complete(admission, 3, 2)
    assert admission.take() == [2, 3]
    admission.advance(1)
    assert admission.capacity() == 3
    admit(admission, 4, 5, 6)
    admission.reject(4)
    assert admission.capacity() == 1  # the limit counts anew
    assert (admission.num_rejected, admission.num_skipped) == (3, 1)


def test_a_step_all_of_whose_slots_are_skipped_is_empty() -> None:
    admission = Admission(2, 0, max_extra_per_step=0)
    admit(admission, 0, 1)
    admission.reject(1)
    assert admission.take() is None
    admission.reject(0)
    assert admission.take() == []
    admission.advance(1)
    assert admission.capacity() == 2


def test_a_skipped_slot_does_not_cost_an_older_group_its_step() -> None:
    """k=1, B=1: the slot skipped is group 2's, of step 2; step 1 still belongs to group 1, which is due there."""
    admission = Admission(1, 1, max_extra_per_step=0)
    admit(admission, 0, 1)
    complete(admission, 0)
    admission.take()
    admission.advance(1)
    admit(admission, 2)
    admission.reject(2)
    assert admission.capacity() == 0
    assert admission.take() is None
    complete(admission, 1)
    assert admission.take() == [1]
    admission.advance(2)
    admit(admission, 3)
    assert admission.take() == []


def test_a_restarted_group_is_of_the_current_version() -> None:
    admission = Admission(1, 1)
    admit(admission, 0, 1)
    complete(admission, 1)
    admission.take()
    admission.advance(1)
    admit(admission, 2)
    complete(admission, 2)
    assert admission.take() is None  # group 0 is due
    admission.restart(0)
    assert admission.take() == [2]
    admission.advance(2)
    complete(admission, 0)
    assert admission.take() == [0]


def test_oversampling_draws_more_and_trains_all_that_is_accepted() -> None:
    admission = Admission(4, 0, oversample=1.5)
    assert admission.capacity() == 6
    admit(admission, *range(6))
    complete(admission, 5, 3, 2, 1)
    assert admission.take() is None  # B are accepted, but two still run
    admission.reject(0)
    assert admission.capacity() == 0  # 5 for 4 slots
    complete(admission, 4)
    assert admission.take() == [1, 2, 3, 4, 5]
    admission.advance(1)
    assert admission.capacity() == 6


def test_oversampling_draws_again_when_too_few_are_left() -> None:
    admission = Admission(4, 0, oversample=1.5)
    admit(admission, *range(6))
    for group in (0, 1, 2):
        admission.reject(group)
    assert admission.capacity() == 2  # one is missing: ceil(1 * 1.5)
    complete(admission, 3, 4, 5)
    assert admission.take() is None
    admit(admission, 6, 7)
    complete(admission, 6, 7)
    assert admission.take() == [3, 4, 5, 6, 7]


def test_oversampling_stays_at_the_factor_asked_for() -> None:
    assert Admission(100, 0, oversample=1.1).capacity() == 110  # 100 * 1.1 is a little more than 110


def test_a_synchronous_step_waits_for_groups_that_no_engine_had_room_for() -> None:
    """Else the size of the step would depend on the engines."""
    admission = Admission(2, 0, oversample=1.5)
    admit(admission, 0, 1)
    complete(admission, 0, 1)
    assert admission.take() is None
    admit(admission, 2)
    complete(admission, 2)
    assert admission.take() == [0, 1, 2]


def test_a_rejected_group_that_was_one_too_many_burns_no_slot() -> None:
    admission = Admission(2, 0, oversample=1.5, max_extra_per_step=1)
    admit(admission, 0, 1, 2)
    admission.reject(0)
    assert (admission.num_rejected, admission.num_skipped) == (1, 0)
    admission.reject(1)
    assert (admission.num_rejected, admission.num_skipped) == (2, 1)
    complete(admission, 2)
    assert admission.take() == [2]


def test_with_more_in_flight_than_there_are_slots_a_step_waits_for_no_more_than_it_takes() -> None:
    """8 groups are due at step 1: 2 could be left for it, but 4 more will be whatever step 0 takes."""
    admission = Admission(2, 1, oversample=2.0)
    admit(admission, *range(8))
    complete(admission, 6, 7)
    assert admission.take() == [6, 7]


def test_surplus_stays_for_later_steps_and_is_trained_when_it_is_due() -> None:
    admission = Admission(2, 1, oversample=1.5)
    admit(admission, *range(6))
    complete(admission, *range(6))
    assert admission.take() == [0, 1]
    admission.advance(1)
    assert admission.capacity() == 0  # 4 for the 4 slots of steps 1 and 2
    assert admission.take() == [2, 3, 4, 5]  # all due now
    assert admission.capacity() == 3  # nothing for the 2 slots of step 2
    admission.advance(2)
    assert admission.capacity() == 5  # and for two more of step 3, less the one too many


@pytest.mark.parametrize(
    ("misuse", "names"),
    [
        (lambda admission: admission.complete(7), "group 7 is not running: it was never admitted"),
        (lambda admission: admission.complete(0), "group 0 is not running: it is already complete, rejected or taken"),
        (lambda admission: admission.reject(0), "group 0 is not running"),
        (lambda admission: admission.restart(0), "group 0 is not running"),
        (lambda admission: admit(admission, 2, 3), "group 3 cannot be admitted: version 1 has no capacity left"),
        (lambda admission: admission.advance(2), "cannot advance to version 2: the step of version 1 is not taken"),
        (lambda admission: admission.advance(1), "cannot advance to version 1"),
    ],
)
def test_misuse_is_an_error_that_names_the_group(misuse: Any, names: str) -> None:
    admission = Admission(1, 1)
    admit(admission, 0, 1)
    complete(admission, 0)
    admission.take()
    admission.advance(1)
    with pytest.raises(ScheduleError, match=names):
        misuse(admission)


@pytest.mark.parametrize("max_staleness", [0, 1])
def test_a_step_is_taken_once(max_staleness: int) -> None:
    admission = Admission(1, max_staleness)
    admit(admission, *range(1 + max_staleness))
    complete(admission, *range(1 + max_staleness))
    admission.take()
    with pytest.raises(ScheduleError, match="step of version 0 was already taken"):
        admission.take()


@pytest.mark.parametrize(
    "sizes",
    [
        {"prompts_per_step": 0},
        {"max_staleness": -1},
        {"policy_version": -1},
        {"oversample": 0.5},
        {"max_extra_per_step": -1},
    ],
)
def test_sizes_that_make_no_sense_are_refused(sizes: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(sizes))):
        Admission(**({"prompts_per_step": 2, "max_staleness": 1} | sizes))
