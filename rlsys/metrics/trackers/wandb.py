"""Weights & Biases, online or into files that `wandb sync` uploads later."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Literal

from rlsys.metrics.row import numbers
from rlsys.metrics.trackers import Start, register

UPLOAD_S = 5.0
"""How long the library may go on uploading when the process ends; what is left stays in the run's folder."""


@register("wandb", imports=("wandb",), extra="wandb")
class WeightsAndBiases:
    """A run of W&B for this run, continued when this one is resumed; its files are in `<run_dir>/wandb`.

    `mode: auto` follows `WANDB_MODE`, and without it is offline where no key is configured. Steps are the metric `step`
    and not W&B's own counter, which refuses a step that comes again.
    """

    def __init__(
        self,
        start: Start,
        *,
        project: str = "rlsys",
        entity: str | None = None,
        run_name: str | None = None,
        group: str | None = None,
        mode: Literal["auto", "online", "offline"] = "auto",
    ) -> None:
        import wandb

        if mode == "auto" and "WANDB_MODE" not in os.environ and not wandb.login(prompt=False, verify=False):
            mode = "offline"
        self._run = wandb.init(
            project=project,
            entity=entity,
            name=run_name or start.run_dir.name,
            group=group,
            id=start.run_id,
            resume="allow" if start.resume_step else None,
            dir=str(start.run_dir),
            config=dict(start.config),
            mode=None if mode == "auto" else mode,
            settings=wandb.Settings(console="off", finish_timeout=UPLOAD_S),
        )
        self._run.define_metric("*", step_metric="step")
        if self._run.offline:
            start.say(f"tracker 'wandb': offline; upload later with: wandb sync {start.run_dir}/wandb/offline-run-*")

    def write(self, step: int, metrics: Mapping[str, float | None]) -> None:
        self._run.log({**numbers(metrics), "step": step})

    def close(self) -> None:
        self._run.finish()
