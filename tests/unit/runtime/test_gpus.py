"""The memory of GPUs, from a program that answers as the driver's does."""

from __future__ import annotations

from pathlib import Path

import pytest

from rlsys.runtime.gpus import MIB, Gpu, fullest_gpu


@pytest.fixture(autouse=True)
def answers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the program's file; without it there is no driver."""
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path / "nvidia-smi"


def program(file: Path, lines: str) -> None:
    file.write_text(f"#!/bin/sh\n{lines}\n")
    file.chmod(0o755)


def test_the_gpu_with_least_free_memory(answers: Path) -> None:
    program(answers, "echo '81559, 80994'; echo '81559, 1200'")
    assert fullest_gpu() == Gpu(81559 * MIB, 1200 * MIB)


def test_only_visible_gpus_count(answers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program(answers, 'case "$*" in *" -i 1,2") echo "100, 50";; *) echo "100, 1";; esac')
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1,2")
    assert fullest_gpu() == Gpu(100 * MIB, 50 * MIB)


@pytest.mark.parametrize("lines", ["exit 9", "echo '[N/A], [N/A]'", ""])
def test_a_driver_without_numbers(answers: Path, lines: str) -> None:
    program(answers, lines)
    assert fullest_gpu() is None


def test_no_driver(answers: Path) -> None:
    assert not answers.exists()
    assert fullest_gpu() is None
