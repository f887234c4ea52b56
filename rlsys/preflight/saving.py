"""Checks that a checkpoint of the model can be written, before training instead of after it."""

from __future__ import annotations

import math
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch

from rlsys.config.paths import nearest_existing
from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.models.folder import base_dtype, base_files, empty_model, write_description
from rlsys.models.policy import DTYPES
from rlsys.preflight.prepared import Prepared, run_tokenizer

# Bytes of DeepSpeed's state per trained parameter: the value and Adam's two moments, in float32.
STATE_BYTES = 12


def check_saving(config: Config, model_path: str) -> None:
    """Raise ConfigError unless a checkpoint of the model can be written; the weights are left out of the trial."""
    model = config.model
    hf = empty_model(model_path, trust_remote_code=model.trust_remote_code)
    dtype = _saved_dtype(config, model_path)
    tokenizer = run_tokenizer(config, model_path)
    try:
        with tempfile.TemporaryDirectory() as folder:
            write_description(Path(folder), hf, dtype, base_files(model_path))
            tokenizer.save_pretrained(folder)
    except (OSError, ValueError, TypeError) as error:
        raise ConfigError(f"model.path '{model_path}': no checkpoint of it could be written: {error}") from error


def check_room(prepared: Prepared, run_dir: Path) -> None:
    """Raise ConfigError when the disk of `run_dir` has no room for the checkpoints that the run keeps."""
    config, options = prepared.config, prepared.config.checkpoint
    hf = empty_model(prepared.model_path, trust_remote_code=config.model.trust_remote_code)
    size = checkpoint_bytes(config, hf, _saved_dtype(config, prepared.model_path).itemsize)
    often = options.every_s > 0 or options.keep_best is not None  # so that any step may write one
    every = 1 if often else options.every
    due = math.ceil(config.train.num_steps / every) if every else int(options.last)
    # The newest is written before the oldest is removed. Those of an earlier start have their room already.
    kept = options.keep + int(options.keep_best is not None)
    number = min(kept + 1, due) - len(list((run_dir / "checkpoints").glob("step-*[0-9]")))
    free = shutil.disk_usage(nearest_existing(run_dir)).free
    if number > 0 and number * size > free:
        raise ConfigError(
            f"run_dir {run_dir}: {free / 1e9:.1f} GB are free, but {number} checkpoints of {size / 1e9:.1f} GB or more "
            f"are kept there (checkpoint.keep={options.keep}, checkpoint.keep_best={options.keep_best}, and a new one "
            "before the oldest is removed): free some space, choose another run_dir, lower checkpoint.keep, or set "
            "checkpoint.every_s=0 for one at the end only"
        )


def checkpoint_bytes(config: Config, hf: Any, itemsize: int) -> int:
    """Return about how large one checkpoint is, at least; `itemsize` is that of saved weights."""
    lora, size = config.learner.lora, hf.num_parameters()
    state = 0 if lora.rank > 0 else STATE_BYTES * size  # adapters are small beside the rest
    return state + (0 if lora.syncs_adapter_only else itemsize * size)


def _saved_dtype(config: Config, model_path: str) -> torch.dtype:
    if config.checkpoint.dtype is not None:
        return DTYPES[config.checkpoint.dtype]
    return base_dtype(model_path, trust_remote_code=config.model.trust_remote_code)
