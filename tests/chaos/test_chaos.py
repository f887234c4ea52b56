"""A real run survives being hurt: nothing is lost, nothing trained twice, nothing left behind, and it learns."""

from __future__ import annotations

import random
import secrets
from pathlib import Path

import pytest

from tests.chaos.campaign import run_campaign
from tests.chaos.ledger import check

# One of every part. Those that are left out are like these, and take longer; `python -m tests.chaos` has them all.
KINDS = (
    "engine killed",
    "reward hangs",
    "reference killed",
    "learner rank killed",
    "scoring worker killed",
    "engine stopped",
    "reward process killed",
    "driver killed",
)


@pytest.mark.timeout(1800)
def test_a_run_survives_eight_faults(tmp_path: Path) -> None:
    seed = secrets.randbelow(10**6)
    print(f"seed {seed}")  # of moments and victims, and of the numbers of workers after the driver was killed
    check(run_campaign(tmp_path, KINDS, random.Random(seed), print))
