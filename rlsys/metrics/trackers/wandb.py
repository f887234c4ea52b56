"""Weights & Biases, online, or in files that `wandb sync` uploads later."""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from typing import Literal

from rlsys.metrics.formatting import finite_items
from rlsys.metrics.trackers import TrackedRun, register

logger = logging.getLogger(__name__)

# Seconds that the library may go on uploading when the process ends; the rest stays in the run's folder.
UPLOAD_S = 5.0


@register("wandb", imports=("wandb",), extra="wandb")
class WeightsAndBiases:
    """One W&B run per run, continued when the run is resumed; its files are in `<run_dir>/wandb`.

    `mode=auto` follows the environment variable `WANDB_MODE`, and without it is offline if no key is configured. Steps
    are the metric `step`, not W&B's own counter, which refuses a step that a resumed run repeats.
    """

    def __init__(
        self,
        run: TrackedRun,
        *,
        project: str = "rlsys",
        entity: str | None = None,
        run_name: str | None = None,
        group: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
    ) -> None:
        """Create the W&B run, or continue it.

        Args:
            run: the run to track.
            project: the W&B project.
            entity: the user or team that owns the project.
            run_name: how W&B shows the run; by default the name of its folder.
            group: the W&B group.
            mode: whether rows are uploaded.
        """
        import wandb

        if mode == "auto" and "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        self._run = wandb.init(
            project=project,
            entity=entity,
            name=run_name or run.run_dir.name,
            group=group,
            id=run.run_id,  # the same after a resume, so that W&B continues the run
            resume="allow" if run.resume_step else None,
            dir=str(run.run_dir),
            config=dict(run.config),
            mode=None if mode == "auto" else mode,
            settings=wandb.Settings(console="off", finish_timeout=UPLOAD_S),
        )
        self._run.define_metric("*", step_metric="step")
        if self._run.offline:
            logger.info("tracker 'wandb': offline; upload later with: wandb sync %s/wandb/offline-run-*", run.run_dir)

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        """Write one row."""
        self._run.log({**finite_items(metrics), "step": step})

    def close(self) -> None:
        """End the W&B run."""
        self._run.finish()
