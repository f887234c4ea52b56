"""Events of groups, one by one: what runs where, what is late, what is lost and runs again."""

from __future__ import annotations

from typing import Any

import pytest

from rlsys.errors import ScheduleError, WorkerDiedError, WorkerError
from rlsys.orchestrator.admission import Ledger, Taken
from rlsys.orchestrator.scheduler import Admission, Scheduler


def scheduler(
    caps: list[int], *, slots: int = 2, max_staleness: int = 0, samples: int = 2, **options: Any
) -> Scheduler:
    return Scheduler(Ledger(slots, max_staleness), caps, samples, **options)


def sample_all(made: Scheduler, group: int, attempt: int = 1, samples: int = 2) -> None:
    for sample in range(samples):
        made.on_sampled(group, attempt, sample)


def test_a_step_from_admission_to_weights() -> None:
    made = scheduler([4])
    assert made.admissions() == [Admission(0, 0, 2, 1), Admission(1, 0, 2, 1)]
    assert made.admissions() == []
    assert [made.on_sampled(1, 1, 1), made.on_sampled(1, 1, 0)] == ["partial", "whole"]
    assert made.on_scored(1, 1, keep=True)
    sample_all(made, 0)
    assert made.take() is None
    made.on_scored(0, 1, keep=True)
    assert made.take() == [Taken(0, 0), Taken(1, 0)]
    assert made.admissions() == []
    made.advance(1)
    assert made.policy_version == 1
    assert [admission.group_id for admission in made.admissions()] == [2, 3]


def test_room_is_free_with_each_trajectory_not_with_each_group() -> None:
    made = scheduler([3], samples=2)
    assert [admission.group_id for admission in made.admissions()] == [0]
    made.on_sampled(0, 1, 0)
    assert [admission.group_id for admission in made.admissions()] == [1]


def test_a_rejected_group_is_replaced_by_the_next() -> None:
    made = scheduler([8])
    made.admissions()
    sample_all(made, 0)
    made.on_scored(0, 1, keep=False)
    assert made.admissions() == [Admission(2, 0, 2, 1)]


def test_a_failed_group_runs_again_first_and_whole() -> None:
    made = scheduler([4, 2], slots=4)
    assert [a.group_id for a in made.admissions()] == [0, 1, 2]
    made.on_sampled(0, 1, 0)
    assert made.on_failed(0, 1, "out of memory", sample=1)
    assert made.metrics()["schedule/waiting_groups"] == 1.0
    assert made.admissions() == [Admission(0, 0, 2, 2)]
    assert made.on_sampled(0, 1, 1) == "late"
    assert not made.on_failed(0, 1, "out of memory")
    assert not made.on_scored(0, 1, keep=True)
    assert [made.on_sampled(0, 2, 0), made.on_sampled(0, 2, 1)] == ["partial", "whole"]
    assert made.num_restarted == 1


def test_a_group_lost_before_its_rewards_runs_again() -> None:
    made = scheduler([4])
    made.admissions()
    sample_all(made, 0)
    assert made.on_failed(0, 1, "the object store lost it")
    assert made.admissions() == [Admission(0, 0, 2, 2)]
    assert made.metrics()["schedule/running_trajectories"] == 4.0


def test_a_step_does_not_wait_for_a_group_that_will_start_again() -> None:
    made = scheduler([2, 2], slots=1, max_staleness=1)
    made.admissions()
    sample_all(made, 1)
    made.on_scored(1, 1, keep=True)
    made.take()
    made.advance(1)
    made.admissions()
    sample_all(made, 2)
    made.on_scored(2, 1, keep=True)
    assert made.take() is None  # group 0 is due
    made.on_engine_lost(0)
    assert made.take() == [Taken(2, 0)]


def test_a_restarted_group_is_as_stale_as_its_last_attempt() -> None:
    made = scheduler([2], slots=1, max_staleness=1)
    made.admissions()
    sample_all(made, 0)
    made.on_scored(0, 1, keep=True)
    made.admissions()
    made.take()
    made.advance(1)
    made.on_failed(1, 1, "gone")
    assert made.admissions() == [Admission(1, 0, 2, 2)]
    sample_all(made, 1, attempt=2)
    made.on_scored(1, 2, keep=True)
    assert made.take() == [Taken(1, 0)]


def test_after_the_last_attempt_the_error_names_group_and_failure() -> None:
    made = scheduler([4], max_attempts=2)
    made.admissions()
    made.on_failed(1, 1, "first")
    made.admissions()
    with pytest.raises(WorkerError, match=r"group 1, sample 0 failed in 2 of 2 attempts\. Last failure: second"):
        made.on_failed(1, 2, "second", sample=0)


def test_groups_of_a_lost_engine_run_elsewhere() -> None:
    made = scheduler([4, 4], slots=4)
    assert [(a.group_id, a.engine) for a in made.admissions()] == [(0, 0), (1, 1), (2, 0), (3, 1)]
    made.on_sampled(0, 1, 0)
    sample_all(made, 2)  # generated: nothing of it is lost
    assert made.on_engine_lost(0) == [0]
    assert made.on_engine_lost(0) == []
    assert made.admissions() == []  # the other engine is full
    sample_all(made, 1)
    assert made.admissions() == [Admission(0, 1, 2, 2)]
    assert made.metrics()["schedule/unscored_groups"] == 2.0
    made.on_engine_added(0)
    assert made.metrics()["schedule/running_trajectories/engine_0"] == 0.0


def test_without_an_engine_there_is_nothing_to_wait_for() -> None:
    made = scheduler([4, 4])
    made.admissions()
    made.on_engine_lost(1)
    with pytest.raises(WorkerDiedError, match="no engine is left to sample on; engine 0 was the last: exit code 1"):
        made.on_engine_lost(0, "exit code 1")


def test_a_group_whose_engines_keep_dying_stops_the_run() -> None:
    made = scheduler([4, 4, 4], slots=1, max_attempts=2)
    made.admissions()
    made.on_engine_lost(0, "killed")
    made.admissions()
    with pytest.raises(WorkerError, match=r"group 0 failed in 2 of 2 attempts\. Last failure: engine 1: killed"):
        made.on_engine_lost(1, "killed")


def test_metrics_say_where_the_groups_are() -> None:
    made = scheduler([4, 4], slots=4)
    made.admissions()
    sample_all(made, 0)
    sample_all(made, 2)
    made.on_scored(2, 1, keep=True)
    made.on_sampled(1, 1, 0)
    made.on_failed(3, 1, "gone")
    assert made.metrics() == {
        "schedule/running_groups": 1.0,
        "schedule/waiting_groups": 1.0,
        "schedule/unscored_groups": 1.0,
        "schedule/ready_groups": 1.0,
        "schedule/running_trajectories": 1.0,
        "schedule/running_trajectories/engine_0": 0.0,
        "schedule/running_trajectories/engine_1": 1.0,
        "schedule/admitted": 4.0,
        "schedule/taken": 0.0,
        "schedule/rejected": 0.0,
        "schedule/burned": 0.0,
        "schedule/restarted": 1.0,
    }


@pytest.mark.parametrize(
    ("misuse", "names"),
    [
        (lambda made: made.on_sampled(0, 1, 0), "group 0: sample 0 of attempt 1 is not being generated"),
        (lambda made: made.on_sampled(0, 1, 2), "group 0: sample 2 of attempt 1 is not being generated"),
        (lambda made: made.on_sampled(9, 1, 0), "group 9 was never admitted"),
        (lambda made: made.on_sampled(-1, 1, 0), "group -1 was never admitted"),
        (lambda made: made.on_sampled(0, 2, 1), "group 0 is in attempt 1, attempt 2 has not started"),
        (lambda made: made.on_scored(0, 1, True), "group 0 was scored in attempt 1 before all of it was generated"),
        (lambda made: made.on_scored(1, 2, True), "group 1 was scored in attempt 2 before"),
        (lambda made: made.on_failed(1, 2, "gone"), "group 1 failed in attempt 2, which has not started"),
        (lambda made: made.on_sampled(1, 2, 0), "group 1: sample 0 of attempt 2 is not being generated"),
    ],
)
def test_what_cannot_be_is_an_error_that_names_the_group(misuse: Any, names: str) -> None:
    made = scheduler([4])
    made.admissions()
    made.on_sampled(0, 1, 0)
    made.on_failed(1, 1, "gone")
    with pytest.raises(ScheduleError, match=names):
        misuse(made)


def test_what_was_trained_is_not_trained_again() -> None:
    made = scheduler([4])
    made.admissions()
    for group in (0, 1):
        sample_all(made, group)
        made.on_scored(group, 1, keep=True)
    assert not made.on_scored(0, 1, keep=True)
    made.take()
    assert made.on_sampled(0, 1, 0) == "late"
    assert not made.on_failed(0, 1, "gone")
    assert made.metrics()["schedule/admitted"] == 2.0


@pytest.mark.parametrize("sizes", [{"samples_per_prompt": 0}, {"max_attempts": 0}])
def test_sizes_that_make_no_sense_are_refused(sizes: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=next(iter(sizes))):
        Scheduler(Ledger(1, 0), [1], **({"samples_per_prompt": 1} | sizes))  # type: ignore[arg-type]
