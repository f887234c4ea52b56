"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping

from rlsys.metrics.formatting import finite_items
from rlsys.metrics.trackers import TrackedRun, register


@register("tensorboard", imports=("torch.utils.tensorboard",))
class TensorBoard:
    """One scalar per metric. A resumed run hides what an earlier start wrote after the checkpoint."""

    def __init__(self, run: TrackedRun) -> None:
        """Open an event file."""
        from torch.utils.tensorboard import SummaryWriter

        # TensorBoard shows events from this step on only from the newest file.
        purge_step = run.resume_step + 1 if run.resume_step else None
        self._writer = SummaryWriter(str(run.run_dir), purge_step=purge_step)

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Write one row."""
        for key, value in finite_items(metrics).items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
