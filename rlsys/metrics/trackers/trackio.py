"""Trackio: a database on this machine, shown by `trackio show`, or a Space on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Mapping

from rlsys.metrics.formatting import finite_items
from rlsys.metrics.trackers import TrackedRun, register


@register("trackio", imports=("trackio",), extra="trackio")
class Trackio:
    """One Trackio run per run, continued when the run is resumed.

    Without `space_id` nothing leaves the machine: the database is in `TRACKIO_DIR`, by default in Hugging Face's cache.
    """

    def __init__(
        self, run: TrackedRun, *, project: str = "rlsys", run_name: str | None = None, space_id: str | None = None
    ) -> None:
        """Create the Trackio run, or continue it.

        Args:
            run: the run to track.
            project: the Trackio project.
            run_name: the name of the Trackio run; by default the folder's name with the run's id.
            space_id: the Space that shows it.
        """
        import trackio

        self._run = trackio.init(
            project=project,
            # Trackio finds a run by its name: two runs in folders of one name must not share it.
            name=run_name or f"{run.run_dir.name}-{run.run_id}",
            space_id=space_id,
            config=dict(run.config),
            resume="allow",
        )

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Write one row."""
        self._run.log(finite_items(metrics), step=step)

    def close(self) -> None:
        """End the Trackio run."""
        self._run.finish()
