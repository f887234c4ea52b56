"""Which engine samples a group: the least loaded one that has room."""

from __future__ import annotations

from collections.abc import Sequence

from rlsys.errors import ScheduleError


class Router:
    """Engines by index, each with a cap on the trajectories that it samples at once."""

    def __init__(self, caps: Sequence[int]) -> None:
        """Raises ValueError without an engine or for a cap below 1."""
        if not caps or min(caps) < 1:
            raise ValueError(f"caps={list(caps)}: at least one engine, each with a cap of at least 1")
        self._caps = tuple(caps)
        self._load: dict[int, int] = dict.fromkeys(range(len(caps)), 0)  # of the engines in service

    @property
    def load(self) -> dict[int, int]:
        """Trajectories running on each engine in service."""
        return dict(self._load)

    def route(self, num_samples: int) -> int | None:
        """The engine for a whole group, its load counted from now on; None where none has room.

        A group stays together because its samples share the prompt's prefix cache. One larger than the cap gets an
        idle engine. Engines are compared by load over cap; among equals the lowest index, so that runs are
        reproducible.
        """
        having_room = [e for e, load in self._load.items() if load == 0 or load + num_samples <= self._caps[e]]
        if not having_room:
            return None
        engine = min(having_room, key=lambda e: (self._load[e] / self._caps[e], e))
        self._load[engine] += num_samples
        return engine

    def release(self, engine: int, num_samples: int = 1) -> None:
        """Trajectories finished. Raises ScheduleError for more than run there."""
        running = self._load.get(engine, 0)
        if num_samples > running:
            raise ScheduleError(f"engine {engine} cannot finish {num_samples} trajectories: {running} run there")
        self._load[engine] = running - num_samples

    def remove(self, engine: int) -> bool:
        """Take an engine that died out of service, and forget its load; False when it was not in service."""
        return self._load.pop(engine, None) is not None

    def add(self, engine: int) -> None:
        """Put a removed engine back into service, idle. Raises ScheduleError for an unknown one or one in service."""
        if engine in self._load or not 0 <= engine < len(self._caps):
            state = "in service already" if engine in self._load else f"none of the {len(self._caps)} engines"
            raise ScheduleError(f"engine {engine} cannot be added: it is {state}")
        self._load[engine] = 0
