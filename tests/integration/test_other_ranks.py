"""Checkpoints that another number of ranks, or another ZeRO stage, wrote: weights and the optimizer's whole state."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

NUMBERS = (1, 2, 3)
LIMIT = {"float32": 1e-6, "bfloat16": 0.02}  # after another update, whose sums are of other parts


@pytest.mark.timeout(1800)
@pytest.mark.long
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_any_number_of_ranks_restores_what_any_other_saved(dtype: str, tmp_path: Path) -> None:
    """Between ZeRO 1 and 2, and within 0 and 3. Between others DeepSpeed itself loads nothing."""
    for command in ("save", "load"):
        for ranks in NUMBERS:
            _run(command, dtype, ranks, tmp_path)
    _run("refuse", dtype, 1, tmp_path)
    for ranks in NUMBERS:
        apart = json.loads((tmp_path / f"apart-{ranks}.json").read_text())
        assert len(apart) == 6 * len(NUMBERS)  # pairs of stages
        for name, (difference, steps_agree, later, later_steps_agree) in apart.items():
            assert difference == 0, (name, ranks)
            assert later < LIMIT[dtype], (name, ranks)
            assert steps_agree, (name, ranks)
            assert later_steps_agree, (name, ranks)


def _run(command: str, dtype: str, ranks: int, root: Path) -> None:
    arguments = [sys.executable, "-m", "tests.integration.divided", command, dtype, str(ranks), str(root)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=600, check=False)
    assert result.returncode == 0, result.stderr[-4000:]
