"""A reference worker without Ray: what it answers, and how it follows the policy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from rlsys.config.compose import load_config
from rlsys.reference.worker import ReferenceSetup, ReferenceWorker
from rlsys.types import Trajectory


def make_worker(model_folder: Path, *overrides: str) -> ReferenceWorker:
    config = load_config(["algorithm.kl.name=k1", *overrides])
    return ReferenceWorker(ReferenceSetup.from_config(config, str(model_folder)))


@pytest.fixture
def worker(model_folder: Path) -> ReferenceWorker:
    return make_worker(model_folder, "algorithm.kl.apply_to=reward")


def trajectory(length: int) -> Trajectory:
    """A prompt of two tokens; the engine gave every sampled token -1."""
    mask = np.arange(2 + length) >= 2
    ids = np.arange(5, 7 + length, dtype=np.int32)
    return Trajectory(ids, mask, np.where(mask, -1.0, 0.0).astype(np.float32), (), "stop", 0)


def test_the_divergence_is_summed_over_each_response(worker: ReferenceWorker) -> None:
    # The first group's trajectories lie in two chunks, the second chunk begins with another group's.
    chunks = [[trajectory(3)], [trajectory(2), trajectory(1)]]
    sums, first, second = worker.logprobs([[(0, 0), (1, 1)], [(1, 0)]], *chunks)
    for group, rows, lengths in ((sums[0], first, (3, 1)), (sums[1], second, (2,))):
        for total, row, length in zip(group, rows, lengths, strict=True):
            assert row.shape == (2 + length,)
            assert total == pytest.approx(float((-1.0 - row[2:]).sum()), rel=1e-5)  # k1: sampled minus reference


def test_without_a_divergence_none_is_computed(model_folder: Path) -> None:
    worker = make_worker(model_folder, "algorithm.kl.apply_to=loss")
    sums, rows = worker.logprobs([[(0, 0)]], [trajectory(3)])
    assert sums == []
    assert rows[0].shape == (5,)


@pytest.mark.parametrize("alpha", [0.25, 1.0])
def test_a_refresh_moves_every_weight_by_alpha(worker: ReferenceWorker, alpha: float) -> None:
    before = {name: p.clone() for name, p in worker._policy.hf.named_parameters()}
    worker.blend({name: torch.ones_like(p) for name, p in before.items()}, alpha)
    for name, parameter in worker._policy.hf.named_parameters():
        assert torch.allclose(parameter, alpha * 1.0 + (1 - alpha) * before[name], atol=1e-6), name


def test_what_was_saved_comes_back(worker: ReferenceWorker, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in worker._policy.hf.named_parameters()}
    worker.save(str(tmp_path))
    worker.blend({name: torch.ones_like(p) for name, p in before.items()}, 0.5)
    worker.load(str(tmp_path))
    for name, parameter in worker._policy.hf.named_parameters():
        assert torch.equal(parameter, before[name]), name
