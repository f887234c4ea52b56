"""How many groups may be in flight, and which of them the next step trains: a hard bound on staleness.

Step v is taken while the policy has version v and makes version v + 1. A group that starts under version u is due at
step u + k, k being `max_staleness`: there its staleness is k. Each step has B slots, so the groups due by step d must
fit into the slots until then. Admission keeps that true of what starts, `take` keeps it true of what is left behind.
"""

from __future__ import annotations

import heapq
import math
from dataclasses import dataclass, field

from rlsys.errors import ScheduleError


@dataclass(frozen=True)
class Taken:
    """A group to train on. `staleness` is the version that trains it minus the version that it started under."""

    group_id: int
    staleness: int


@dataclass
class _Cohort:
    """The groups that started under one version: they are due at the same step."""

    num_outstanding: int = 0  # running or ready
    ready: list[tuple[int, bool]] = field(default_factory=list)  # heap of group_id and whether its slot is burned


class Ledger:
    """Counts groups; knows nothing of engines or samples.

    B is `prompts_per_step`. Up to `max_rejects_per_step` rejected groups between two takes are replaced (None: all);
    beyond, the slot is burned: the step that it falls to trains on fewer groups. `oversample` draws
    ceil(missing * oversample) groups wherever groups are missing; those that turn out to be too many are trained all
    the same, before they are too stale: then a step is larger than B. Nothing is ever thrown away, and nothing is
    started that no step of a run of `num_steps` would train.

    A group that was taken or replaced is forgotten: memory and cost depend on what is in flight alone.
    """

    def __init__(
        self,
        prompts_per_step: int,
        max_staleness: int,
        *,
        policy_version: int = 0,
        num_steps: int | None = None,
        max_rejects_per_step: int | None = None,
        oversample: float = 1.0,
    ) -> None:
        """Raises ValueError for sizes that make no sense."""
        if prompts_per_step < 1 or max_staleness < 0 or policy_version < 0 or oversample < 1.0:
            raise ValueError(
                f"prompts_per_step={prompts_per_step} must be at least 1, oversample={oversample} at least 1, "
                f"max_staleness={max_staleness} and policy_version={policy_version} at least 0"
            )
        if max_rejects_per_step is not None and max_rejects_per_step < 0:
            raise ValueError(f"max_rejects_per_step={max_rejects_per_step} must be at least 0, or None for no limit")
        self.policy_version = policy_version
        self.num_admitted = 0
        self.num_taken = 0
        self.num_rejected = 0
        self.num_burned = 0  # of the rejected
        self.num_ready = 0  # burned slots among them
        self._prompts_per_step = prompts_per_step
        self._max_staleness = max_staleness
        self._num_steps = num_steps
        self._max_rejects = max_rejects_per_step
        self._oversample = oversample
        self._running: dict[int, int] = {}  # group_id -> version that it started under
        # By that version. Groups only ever start under the newest, so that the order of insertion is by age.
        self._cohorts: dict[int, _Cohort] = {}
        self._newest_id = -1
        self._granted = 0
        self._num_replaced = 0  # since the last take
        self._is_taken = False  # the step of this version
        self._grant()

    @property
    def num_running(self) -> int:
        """Groups admitted and neither complete nor rejected."""
        return len(self._running)

    def capacity(self) -> int:
        """Groups that may be admitted now.

        Without oversampling this is AReaL's rule (arXiv:2505.24298): (k + version + 1) * B, less the slots of steps
        already taken, less the groups in flight.
        """
        return self._granted

    def admit(self, group_id: int) -> None:
        """Start a group under the current version. Raises ScheduleError without capacity or for an id out of order."""
        if self._granted == 0:
            raise ScheduleError(f"group {group_id} cannot be admitted: no capacity at version {self.policy_version}")
        if group_id <= self._newest_id:
            raise ScheduleError(f"group {group_id} admitted after group {self._newest_id}: ids must increase")
        self._newest_id = group_id
        self._granted -= 1
        self.num_admitted += 1
        self._running[group_id] = self.policy_version
        self._current_cohort().num_outstanding += 1

    def restart(self, group_id: int) -> None:
        """Nothing sampled of a running group so far counts: it starts under the current version."""
        self._cohorts[self._start_of(group_id)].num_outstanding -= 1
        self._running[group_id] = self.policy_version
        self._current_cohort().num_outstanding += 1

    def complete(self, group_id: int) -> None:
        """A running group is sampled and scored: it may be taken."""
        self._finish(group_id, is_burned=False)

    def reject(self, group_id: int) -> None:
        """A running group teaches nothing: replaced, unless others already fill its place or the limit is reached."""
        start = self._start_of(group_id)
        self.num_rejected += 1
        is_surplus = self._missing() < 0
        if not is_surplus and self._max_rejects is not None and self._num_replaced >= self._max_rejects:
            # The slot stays until a step takes it as if it were the group. Were it given back at once, groups that
            # are due before this one would miss it.
            self.num_burned += 1
            self._finish(group_id, is_burned=True)
            return
        del self._running[group_id]
        self._cohorts[start].num_outstanding -= 1
        self._num_replaced += not is_surplus
        self._grant()

    def take(self) -> list[Taken] | None:
        """The groups of this version's step, oldest first; None as long as they are not ready.

        An empty list is a step all of whose slots are burned. Raises ScheduleError when the step was already taken.
        """
        if self._is_taken:
            raise ScheduleError(f"the step of version {self.policy_version} was already taken: advance first")
        size = self._ready_size()
        if size is None:
            return None
        taken: list[Taken] = []
        for start, cohort in list(self._cohorts.items()):
            count = min(size, len(cohort.ready))
            chosen = [heapq.heappop(cohort.ready) for _ in range(count)]
            taken += [Taken(group, self.policy_version - start) for group, is_burned in chosen if not is_burned]
            cohort.num_outstanding -= count
            size -= count
            self.num_ready -= count
            if cohort.num_outstanding == 0:
                del self._cohorts[start]
        self.num_taken += len(taken)
        self._num_replaced = 0
        self._is_taken = True
        self._grant()
        return taken

    def advance(self, policy_version: int) -> None:
        """The step taken last was trained and the engines have its weights: `policy_version` is its version.

        Raises ScheduleError unless it is the next one and its step was taken.
        """
        if policy_version != self.policy_version + 1 or not self._is_taken:
            state = "taken" if self._is_taken else "not taken"
            raise ScheduleError(
                f"cannot advance to version {policy_version}: the step of version {self.policy_version} is {state}, "
                f"and versions come one at a time"
            )
        self.policy_version = policy_version
        self._is_taken = False
        self._grant()

    def _finish(self, group_id: int, *, is_burned: bool) -> None:
        start = self._start_of(group_id)
        del self._running[group_id]
        heapq.heappush(self._cohorts[start].ready, (group_id, is_burned))
        self.num_ready += 1

    def _ready_size(self) -> int | None:
        """How many groups the step takes; None as long as it must wait.

        It takes the oldest that are ready: B, or all that are due now where oversampling made them more. For every
        step d, of the groups due by then no more may stay behind than fit into the (d - version) * B slots left; where
        oversampling made that impossible, a later step is larger, and this one takes as many of them as it can.
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
        """Groups that no later step may train. With k = 0 those still to be admitted are among them: else the size of
        a step would depend on who was faster."""
        cohort = self._cohorts.get(self.policy_version - self._max_staleness)
        outstanding = cohort.num_outstanding if cohort else 0
        return outstanding + self._granted if self._max_staleness == 0 else outstanding

    def _missing(self) -> int:
        """Slots of the steps until version + k that no group fills, in flight or about to be; negative: surplus."""
        num_steps = self._max_staleness + 1
        if self._num_steps is not None:
            num_steps = min(num_steps, self._num_steps - self.policy_version)
        num_steps -= self._is_taken
        return num_steps * self._prompts_per_step - self.num_running - self.num_ready - self._granted

    def _grant(self) -> None:
        # Here and not in `capacity`: at each event by itself, however many come between two looks at the capacity,
        # so that the number drawn depends on the number rejected alone.
        missing = self._missing()
        if missing > 0:
            self._granted += math.ceil(missing * self._oversample - 1e-9)  # 100 * 1.1 is a little more than 110

    def _current_cohort(self) -> _Cohort:
        return self._cohorts.setdefault(self.policy_version, _Cohort())

    def _start_of(self, group_id: int) -> int:
        start = self._running.get(group_id)
        if start is None:
            known = "was never admitted" if group_id > self._newest_id else "is already complete, rejected or taken"
            raise ScheduleError(f"group {group_id} is not running: it {known}")
        return start
