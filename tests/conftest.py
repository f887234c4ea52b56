"""Shared by all tests: offline libraries, where the data is."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from rlsys.runtime.garbage import freeze_started

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("RLSYS_DATA", str(Path(__file__).parents[2] / "shared" / "data"))
# A script's background jobs ignore SIGINT; the tests of Ctrl-C need it as in a terminal.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_finish() -> None:
    """Exclude what the tests' modules have imported from garbage collections, each of which would walk all of it."""
    freeze_started()


@pytest.fixture(scope="session")
def gsm8k() -> Path:
    """GSM8K's folder, from RLSYS_DATA."""
    folder = Path(os.environ["RLSYS_DATA"]) / "gsm8k"
    if not (folder / "train.jsonl").is_file():
        pytest.skip(f"no GSM8K in {folder}: set RLSYS_DATA to the folder that holds gsm8k/")
    return folder
