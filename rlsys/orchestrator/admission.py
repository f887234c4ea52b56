"""Admission: how many groups may be in flight, and which of them the next step trains; a hard bound on staleness.

Step v is taken while the policy has version v, and makes version v + 1. A group that starts under version u is due at
step u + k at the latest, where k is `max_staleness`: there its staleness is k. (Steps are numbered here by the version
that they start from; `train.py` calls the step that makes version v step v.) Each step has B slots
(`prompts_per_step`), so the groups due by step d must fit into the slots of the steps until d. `admit` keeps this true
for groups that start, `take` keeps it true for groups that are left for later steps.

Example with B = 2, k = 1: at version 0 four groups may start, since steps 0 and 1 together have four slots. Step 0
takes the two oldest that are ready. Version 1 lets two more start.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from rlsys.errors import ScheduleError


@dataclass
class _Cohort:
    """The groups that started under one version; all are due at the same step."""

    num_outstanding: int = 0  # running or ready
    ready: list[tuple[int, bool]] = field(default_factory=list)  # heap of group_id and whether the slot is skipped


class Admission:
    """The decision when a group may start and which groups a step trains. It has no clock, no engines and no samples.

    Rejected groups are replaced. `oversample` admits ceil(missing * oversample) groups for `missing` empty slots.
    Surplus groups are trained too, before they become too stale, and such a step is larger than B. No accepted group is
    ever dropped, and no group starts that no step of a run of `num_steps` would train.

    `max_extra_per_step` limits the groups that start between two takes beyond one for each slot of a new step, be it to
    replace others or by oversampling (None: no limit). Beyond that limit a rejected group's slot is skipped: the step
    that it belongs to trains fewer groups. With B = 2 and a limit of 4 a synchronous step draws 6 prompts at most.

    Memory and time depend only on the groups in flight: taken and replaced groups are forgotten.
    """

    def __init__(
        self,
        prompts_per_step: int,
        max_staleness: int,
        *,
        policy_version: int = 0,
        num_steps: int | None = None,
        max_extra_per_step: int | None = None,
        oversample: float = 1.0,
        ready: Sequence[int] = (),
    ) -> None:
        """Start with nothing in flight under `policy_version`, and perhaps with groups that are ready.

        `ready` has the version that each of them started under, within `max_staleness` of the policy's; their ids are
        0, 1 and so on. Raises ValueError for sizes that make no sense.
        """
        if prompts_per_step < 1 or max_staleness < 0 or policy_version < 0 or oversample < 1.0:
            raise ValueError(
                f"prompts_per_step={prompts_per_step} must be at least 1, oversample={oversample} at least 1, "
                f"max_staleness={max_staleness} and policy_version={policy_version} at least 0"
            )
        if max_extra_per_step is not None and max_extra_per_step < 0:
            raise ValueError(f"max_extra_per_step={max_extra_per_step} must be at least 0, or None for no limit")
        self.policy_version = policy_version
        self.num_admitted = 0
        self.num_taken = 0
        self.num_rejected = 0
        self.num_skipped = 0  # rejected groups whose slot stays empty
        self.num_ready = 0  # skipped slots included
        self._prompts_per_step = prompts_per_step
        self._max_staleness = max_staleness
        self._num_steps = num_steps
        self._max_extra = max_extra_per_step
        self._oversample = oversample
        self._running: dict[int, int] = {}  # group_id -> version that it started under
        # By the version they started under. Groups only ever start under the newest, so the order of insertion is the
        # order of age.
        self._cohorts: dict[int, _Cohort] = {}
        self._next_id = 0
        self._capacity = 0
        self._num_extra = 0  # groups granted since the last take, beyond one for each slot of a new step
        self._is_taken = False  # whether the step of this version was taken
        for start in sorted(ready):
            self._restore(start)
        self._fill_slots(self._missing())

    def _restore(self, start: int) -> None:
        if not self.policy_version - self._max_staleness <= start <= self.policy_version:
            raise ValueError(f"a group of version {start} cannot be trained from version {self.policy_version}")
        cohort = self._cohorts.setdefault(start, _Cohort())
        cohort.num_outstanding += 1
        heapq.heappush(cohort.ready, (self._next_id, False))
        self._next_id += 1
        self.num_ready += 1

    @property
    def num_running(self) -> int:
        """Number of groups admitted and neither complete nor rejected."""
        return len(self._running)

    def capacity(self) -> int:
        """Return the number of groups that may be admitted now.

        Without oversampling this is AReaL's rule (arXiv:2505.24298): (k + version + 1) * B, less the slots of steps
        already taken, less the groups in flight.
        """
        return self._capacity

    def admit(self) -> int:
        """Start a group under the current version; returns its id. Raises ScheduleError without capacity."""
        if self._capacity == 0:
            raise ScheduleError(
                f"group {self._next_id} cannot be admitted: version {self.policy_version} has no capacity left"
            )
        group_id, self._next_id = self._next_id, self._next_id + 1
        self._capacity -= 1
        self.num_admitted += 1
        self._running[group_id] = self.policy_version
        self._current_cohort().num_outstanding += 1
        return group_id

    def restart(self, group_id: int) -> None:
        """Count a running group as started under the current version: nothing that it sampled so far is used."""
        self._cohorts[self._start_of(group_id)].num_outstanding -= 1
        self._running[group_id] = self.policy_version
        self._current_cohort().num_outstanding += 1

    def complete(self, group_id: int) -> None:
        """Make a running group available to `take`: it is sampled, scored and kept."""
        self._finish(group_id, is_skipped=False)

    def reject(self, group_id: int) -> None:
        """Reject a running group that is not worth training.

        A replacement may start, unless a surplus group already fills the slot or the limit of replacements is reached.
        """
        start = self._start_of(group_id)
        self.num_rejected += 1
        # Asked while the group still counts: a negative number means that the others fill all slots without it, and its
        # loss needs no replacement.
        is_surplus = self._missing() < 0
        if not is_surplus and self._max_extra is not None and self._num_extra >= self._max_extra:
            # The slot stays until a step takes it as if it were the group. If it were given back at once, groups that
            # are due before this one would miss it.
            self.num_skipped += 1
            self._finish(group_id, is_skipped=True)
            return
        del self._running[group_id]
        self._cohorts[start].num_outstanding -= 1
        self._fill_slots()

    def take(self) -> list[int] | None:
        """Return the ids of the groups that this version's step trains, oldest first; None while they are not ready.

        An empty list is a step whose slots are all skipped. Raises ScheduleError when the step was already taken.
        """
        if self._is_taken:
            raise ScheduleError(f"the step of version {self.policy_version} was already taken: advance first")
        size = self._ready_size()
        if size is None:
            return None
        taken: list[int] = []
        for start, cohort in list(self._cohorts.items()):
            count = min(size, len(cohort.ready))
            chosen = [heapq.heappop(cohort.ready) for _ in range(count)]
            taken += [group_id for group_id, is_skipped in chosen if not is_skipped]
            cohort.num_outstanding -= count
            size -= count
            self.num_ready -= count
            if cohort.num_outstanding == 0:
                del self._cohorts[start]
        self.num_taken += len(taken)
        self._num_extra = 0
        self._is_taken = True
        self._fill_slots()
        return taken

    def advance(self, policy_version: int) -> None:
        """Move on to `policy_version`: the step taken last was trained, and the engines have its weights.

        Raises ScheduleError unless it is the next version and its step was taken.
        """
        if policy_version != self.policy_version + 1 or not self._is_taken:
            state = "taken" if self._is_taken else "not taken"
            raise ScheduleError(
                f"cannot advance to version {policy_version}: the step of version {self.policy_version} is {state}, "
                f"and versions come one at a time"
            )
        self.policy_version = policy_version
        self._is_taken = False
        self._fill_slots(self._prompts_per_step)

    def _finish(self, group_id: int, *, is_skipped: bool) -> None:
        start = self._start_of(group_id)
        del self._running[group_id]
        heapq.heappush(self._cohorts[start].ready, (group_id, is_skipped))
        self.num_ready += 1

    def _ready_size(self) -> int | None:
        """Return how many groups the step takes; None while it must wait.

        It takes the oldest that are ready: B, or all that are due now where oversampling made them more. For every
        later step d, of the groups due by d no more may stay behind than fit into the (d - version) * B slots left.
        Where oversampling made that impossible a later step is larger, and this one takes as many of them as it can.
        """
        slots, version = self._prompts_per_step, self.policy_version
        size = max(slots, self._num_due_now())
        if self.num_ready < size:
            return None
        outstanding = ready = 0
        for start, cohort in self._cohorts.items():
            outstanding += cohort.num_outstanding
            ready += len(cohort.ready)
            needed = outstanding - (start + self._max_staleness - version) * slots
            if ready < min(needed, size):
                return None
        return size

    def _num_due_now(self) -> int:
        """Return the number of groups that no later step may train.

        With k = 0 this includes those still to be admitted: otherwise the size of a step would depend on which engine
        was faster.
        """
        cohort = self._cohorts.get(self.policy_version - self._max_staleness)
        outstanding = cohort.num_outstanding if cohort else 0
        return outstanding + self._capacity if self._max_staleness == 0 else outstanding

    def _missing(self) -> int:
        """Return how many slots of the steps until version + k have no group, running, ready or granted.

        A negative number is a surplus.
        """
        num_steps = self._max_staleness + 1
        if self._num_steps is not None:
            num_steps = min(num_steps, self._num_steps - self.policy_version)
        # The step of this version is taken, so its slots are gone; those of one more step open with `advance`.
        num_steps -= self._is_taken
        return num_steps * self._prompts_per_step - self.num_running - self.num_ready - self._capacity

    def _fill_slots(self, num_new: int = 0) -> None:
        """Let groups start for the slots that have none; `num_new` slots of new steps do not count as extra."""
        # At each event and not in `capacity`: the number of groups drawn then depends only on the number rejected, not
        # on how many rejections come between two looks at the capacity.
        missing = self._missing()
        if missing <= 0:
            return
        granted = math.ceil(missing * self._oversample - 1e-9)  # 100 * 1.1 is a little more than 110
        if self._max_extra is not None:
            # An empty slot gets one group in any case: a step could not be taken while it has none.
            granted = max(missing, min(granted, num_new + self._max_extra - self._num_extra))
        self._num_extra += max(granted - num_new, 0)
        self._capacity += granted

    def _current_cohort(self) -> _Cohort:
        return self._cohorts.setdefault(self.policy_version, _Cohort())

    def _start_of(self, group_id: int) -> int:
        start = self._running.get(group_id)
        if start is None:
            known = "was never admitted" if group_id >= self._next_id else "is already complete, rejected or taken"
            raise ScheduleError(f"group {group_id} is not running: it {known}")
        return start
