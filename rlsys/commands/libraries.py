"""Settings for the libraries that a command loads: no progress bars and notices on the terminal."""

from __future__ import annotations

import logging
import os


def quiet_libraries() -> None:
    """Turn off progress bars and notices of the libraries; their warnings and errors stay."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # The driver computes nothing on a device; workers get a setting of their own (rlsys/build/placement.py).
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("datasets").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
