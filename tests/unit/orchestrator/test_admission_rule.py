"""Admission under any order of events, against the rules counted out in full."""

from __future__ import annotations

import math
import random

from hypothesis import given
from hypothesis import strategies as st

from rlsys.orchestrator.admission import Admission


class Rule:
    """The rules as written down, by counting over everything: an oracle for admission, without oversampling."""

    def __init__(self, slots: int, max_staleness: int, version: int, max_rejects: int | None) -> None:
        self.slots, self.max_staleness, self.version, self.max_rejects = slots, max_staleness, version, max_rejects
        self.resolved = version * slots
        self.replaced = 0
        self.is_taken = False
        self.start: dict[int, int] = {}  # outstanding groups
        self.state: dict[int, str] = {}  # running | ready | skipped

    def capacity(self) -> int:
        return max(0, (self.max_staleness + self.version + 1) * self.slots - self.resolved - len(self.start))

    def reject(self, group: int) -> None:
        if self.max_rejects is not None and self.replaced >= self.max_rejects:
            self.state[group] = "skipped"
            return
        self.replaced += 1
        del self.start[group], self.state[group]

    def chosen(self) -> list[int] | None:
        by_age = sorted(self.start, key=lambda group: (self.start[group], group))
        chosen = [group for group in by_age if self.state[group] != "running"][: self.slots]
        if len(chosen) < self.slots:
            return None
        for due in range(self.version, self.version + self.max_staleness + 1):
            behind = [g for g in by_age if g not in chosen and self.start[g] + self.max_staleness <= due]
            if len(behind) > (due - self.version) * self.slots:
                return None
        return chosen

    def take(self, chosen: list[int]) -> list[int]:
        taken = [group for group in chosen if self.state[group] == "ready"]
        for group in chosen:
            del self.start[group], self.state[group]
        self.resolved += len(chosen)
        self.replaced, self.is_taken = 0, True
        return taken


@given(
    slots=st.integers(1, 3),
    max_staleness=st.integers(0, 3),
    version=st.integers(0, 4),
    max_rejects=st.sampled_from([None, 0, 1, 3]),
    seed=st.integers(0, 2**32),
)
def test_any_order_of_events_follows_the_rule(
    slots: int, max_staleness: int, version: int, max_rejects: int | None, seed: int
) -> None:
    choices = random.Random(seed)
    rule = Rule(slots, max_staleness, version, max_rejects)
    admission = Admission(slots, max_staleness, policy_version=version, max_extra_per_step=max_rejects)
    next_id = 0
    for _ in range(120):
        assert admission.capacity() == rule.capacity()
        running = [group for group, state in rule.state.items() if state == "running"]
        event = choices.choice(["admit", "complete", "complete", "reject", "restart", "take", "advance"])
        if event == "admit" and rule.capacity():
            assert admission.admit() == next_id
            rule.start[next_id], rule.state[next_id] = rule.version, "running"
            next_id += 1
        elif event in ("complete", "reject", "restart") and running:
            group = choices.choice(running)
            getattr(admission, event)(group)
            if event == "complete":
                rule.state[group] = "ready"
            elif event == "reject":
                rule.reject(group)
            else:
                rule.start[group] = rule.version
        elif event == "take" and not rule.is_taken:
            chosen = rule.chosen()
            assert admission.take() == (None if chosen is None else rule.take(chosen))
        elif event == "advance" and rule.is_taken:
            rule.version, rule.is_taken = rule.version + 1, False
            admission.advance(rule.version)


@given(
    slots=st.integers(1, 4),
    max_staleness=st.integers(0, 3),
    oversample=st.sampled_from([1.0, 1.25, 1.5, 2.0]),
    max_rejects=st.sampled_from([None, 0, 2]),
    seed=st.integers(0, 2**32),
)
def test_oversampling_is_bounded_and_trains_everything_in_time(
    slots: int, max_staleness: int, oversample: float, max_rejects: int | None, seed: int
) -> None:
    """Groups end in any order; whenever all have ended and there is no capacity, the step is ready."""
    choices = random.Random(seed)
    admission = Admission(slots, max_staleness, oversample=oversample, max_extra_per_step=max_rejects)
    start: dict[int, int] = {}
    running: list[int] = []
    next_id = 0
    for version in range(12):
        while (taken := admission.take()) is None:
            assert admission.num_running + admission.num_ready + admission.capacity() <= math.ceil(
                (max_staleness + 1) * slots * oversample + oversample
            )
            assert running or admission.capacity(), "neither running nor admissible, but the step is not ready"
            if admission.capacity() and (not running or choices.random() < 0.5):
                assert admission.admit() == next_id
                start[next_id] = version
                running.append(next_id)
                next_id += 1
            else:
                group = running.pop(choices.randrange(len(running)))
                if choices.random() < 0.3:
                    admission.reject(group)
                    del start[group]
                else:
                    admission.complete(group)
        for group in taken:
            assert version - start.pop(group) <= max_staleness
        assert all(version - then < max_staleness for then in start.values()), "a group was left behind"
        if max_rejects is None:
            assert len(taken) >= slots
        admission.advance(version + 1)
