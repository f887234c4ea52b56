"""rlsys: distributed reinforcement learning for language models on Ray, vLLM and DeepSpeed.

The entry from Python, the same runs as those of the console command:

    from rlsys import evaluate_policy, load_config, train_policy

    config = load_config("experiment=quickstart", "train.num_steps=50")
    run_dir = train_policy(config)
    results = evaluate_policy(str(run_dir), "eval.num_samples=8")

Importing rlsys loads none of its libraries; each of these functions loads what it needs.
"""

from __future__ import annotations

import os
import sys

# `python -m` puts the working directory before everything that is installed: a `rich.py` there would be run by any
# command. Code of the user's own is looked up there when it is asked for (`rlsys.registry.load_external`). Here:
# importing rlsys is the first thing that `python -m rlsys.cli` does.
if sys.argv[:1] == ["-m"] and sys.path[0] == os.getcwd():
    del sys.path[0]

import gc
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rlsys.config.schema import Config
    from rlsys.evaluation.evaluate import Evaluation

# In a worker this variable (`rlsys.runtime.cluster.CODE_FOLDERS`) names the driver's folders, with modules of the
# user's own. Ray has put them before the libraries, and a `rich.py` there would be run in every worker. They come last,
# as in the driver; here, because importing rlsys is the first thing that a worker does.
for _folder in filter(None, os.environ.get("RLSYS_CODE_FOLDERS", "").split(os.pathsep)):
    sys.path[:] = [path for path in sys.path if path != _folder]  # before anything more is imported
    from rlsys.registry import search_last

    search_last(_folder)
if "RLSYS_CODE_FOLDERS" in os.environ:  # until the worker has started (`rlsys.runtime.garbage`)
    gc.disable()

__version__ = "0.1.0"
__all__ = ["evaluate_policy", "load_config", "train_policy"]


def load_config(*overrides: str) -> Config:
    """Return the configuration that overrides describe, written as on the command line of `rlsys train`.

    Raises:
        ConfigError: an override that cannot be read, or an unknown key, preset or experiment.
    """
    from rlsys.config.compose import load_config

    return load_config(overrides)


def train_policy(config: Config) -> Path:
    """Train a run to its end and return its folder: `config.run_dir`, or `runs/run/<time>` when that is None.

    Raises:
        RlsysError: what `rlsys train` prints; for everything that is wrong with the configuration before Ray starts.
    """
    from rlsys.commands.train import train_job
    from rlsys.config.compose import Job

    return train_job(Job(config))


def evaluate_policy(model_or_run: str, *overrides: str, step: int | None = None) -> list[Evaluation]:
    """Evaluate a model (folder or hub id) or a run's checkpoint (of `step`, or the newest) on its held-out data sets.

    Raises:
        RlsysError: what `rlsys eval` prints.
    """
    from rlsys.commands.evaluate import evaluate_target

    return evaluate_target(model_or_run, overrides, step=step)[1]
