"""TensorBoard: event files in the run's folder."""

from __future__ import annotations

from collections.abc import Mapping

from rlsys.metrics.row import numbers
from rlsys.metrics.trackers import Start, register


@register("tensorboard", imports=("torch.utils.tensorboard",))
class TensorBoard:
    """One scalar a metric. What an earlier start wrote after the checkpoint is purged."""

    def __init__(self, start: Start) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge_step = start.resume_step + 1 if start.resume_step else None
        self._writer = SummaryWriter(str(start.run_dir), purge_step=purge_step)

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        for key, value in numbers(metrics).items():
            self._writer.add_scalar(key, value, step)
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()
