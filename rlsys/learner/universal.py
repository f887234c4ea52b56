"""Checkpoints for another number of ranks or another ZeRO stage, through DeepSpeed's universal format.

https://www.deepspeed.ai/tutorials/universal-checkpointing/: one file per parameter and state, from which each rank
takes its part.
"""

from __future__ import annotations

import contextlib
import io
import logging
from argparse import Namespace
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rlsys.run_folder.room import naming_full_disk

logger = logging.getLogger(__name__)


def convert(source: Path, target: Path) -> None:
    """Write what DeepSpeed saved to `source` in its universal format to `target`, which needs twice the room meanwhile.

    Of the ranks' optimizer states it holds one at a time in memory.
    """
    from deepspeed.checkpoint import ds_to_universal

    target.parent.mkdir(parents=True, exist_ok=True)
    said = io.StringIO()  # its progress
    with naming_full_disk(target), contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        ds_to_universal.main(
            Namespace(
                input_folder=str(source),
                output_folder=str(target),
                num_extract_workers=1,
                num_merge_workers=1,
                keep_temp_folder=False,
                strict=True,
                inject_missing_state=True,  # the number of the format
            )
        )
    logger.info("converted %s for this number of ranks and ZeRO stage", source)


@contextlib.contextmanager
def loading_converted(engine: Any) -> Iterator[None]:
    """Have a DeepSpeed engine load what `convert` wrote in the block."""
    engine._config.load_universal_checkpoint = True
    try:
        yield
    finally:
        engine._config.load_universal_checkpoint = False
    # ZeRO-3 gives one tensor to all parts of the optimizer, and each would count its step there.
    for state in engine.optimizer.optimizer.state.values():
        state["step"] = state["step"].clone()
