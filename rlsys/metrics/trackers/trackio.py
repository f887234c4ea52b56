"""Trackio: a database on this machine, shown by `trackio show`, or a Space on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping

from rlsys.metrics.row import numbers
from rlsys.metrics.trackers import Start, register


@register("trackio", imports=("trackio",), extra="trackio")
class Trackio:
    """A run of Trackio for this run, continued when this one is resumed.

    Without `space_id` nothing leaves the machine: the database is in `TRACKIO_DIR`, by default in Hugging Face's cache.
    """

    def __init__(
        self, start: Start, *, project: str = "rlsys", run_name: str | None = None, space_id: str | None = None
    ) -> None:
        import trackio

        self._run = trackio.init(
            project=project,
            # Trackio knows a run by its name.
            name=run_name or f"{start.run_dir.name}-{start.run_id}",
            space_id=space_id,
            config=dict(start.config),
            resume="allow",
        )

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        self._run.log(numbers(metrics), step=step)

    def close(self) -> None:
        self._run.finish()
