"""rlsys: distributed reinforcement learning for language models on Ray, vLLM and DeepSpeed.

The entry from Python, the same runs as those of the console command:

    from rlsys import evaluate, load_config, train

    config = load_config("experiment=quickstart", "train.num_steps=50")
    run_dir = train(config)
    results = evaluate(str(run_dir), "eval.num_samples=8")

Importing rlsys loads none of its libraries; each of these functions loads what it needs.
"""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlsys.config.schema import Config
    from rlsys.evaluation.evaluate import Evaluation

__version__ = "0.1.0"
__all__ = ["evaluate", "load_config", "train"]


def load_config(*overrides: str) -> Config:
    """Return the configuration that overrides describe, written as on the command line of `rlsys train`.

    Raises:
        ConfigError: an override that cannot be read, or an unknown key, preset or experiment.
    """
    from rlsys.config.compose import load_config

    return load_config(overrides)


def train(config: Config) -> Path:
    """Train a run to its end and return its folder: `config.run_dir`, or `runs/run/<time>` when that is None.

    Raises:
        RlsysError: what `rlsys train` prints; for everything that is wrong with the configuration before Ray starts.
    """
    from rlsys.commands.train import train_job
    from rlsys.config.compose import Job

    return train_job(Job(config))


def evaluate(model_or_run: str, *overrides: str, step: int | None = None) -> list[Evaluation]:
    """Evaluate a model (folder or hub id) or a run's checkpoint (of `step`, or the newest) on its held-out data sets.

    Raises:
        RlsysError: what `rlsys eval` prints.
    """
    from rlsys.commands.evaluate import evaluate_target

    return evaluate_target(model_or_run, overrides, step=step)[1]


class _Package(ModuleType):
    """This package, in which `train` stays the function above.

    The first import of the loop's module `rlsys.train` would put the module in its place, as Python does with every
    submodule. `from rlsys.train import ...` finds the module in `sys.modules` all the same.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name == "train" and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
