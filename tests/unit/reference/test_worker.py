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
    return ReferenceWorker(ReferenceSetup.from_config(config, str(model_folder), 64))


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
    refresh(worker, alpha, dict.fromkeys(before, 1.0))
    for name, parameter in worker._policy.hf.named_parameters():
        assert torch.allclose(parameter, alpha * 1.0 + (1 - alpha) * before[name], atol=1e-6), name


def refresh(worker: ReferenceWorker, alpha: float, values: dict[str, float]) -> None:
    """Blend with a policy that has one value per parameter, which arrives one parameter at a time."""
    parameters = dict(worker._policy.hf.named_parameters())
    for name, value in values.items():
        worker.stage({name: torch.full_like(parameters[name], value)})
    worker.blend(alpha)


def test_parts_that_have_arrived_change_nothing_before_the_last(worker: ReferenceWorker) -> None:
    before = {name: p.clone() for name, p in worker._policy.hf.named_parameters()}
    worker.stage({name: torch.ones_like(p) for name, p in before.items()})
    for name, parameter in worker._policy.hf.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_what_was_saved_comes_back(worker: ReferenceWorker, tmp_path: Path) -> None:
    before = {name: p.clone() for name, p in worker._policy.hf.named_parameters()}
    worker.save(str(tmp_path))
    refresh(worker, 0.5, dict.fromkeys(before, 1.0))
    worker.load(str(tmp_path))
    for name, parameter in worker._policy.hf.named_parameters():
        assert torch.equal(parameter, before[name]), name


def test_a_resumed_bfloat16_reference_moves_on_from_where_it_was(model_folder: Path, tmp_path: Path) -> None:
    """Steps below half a unit of bfloat16 add up, with a checkpoint between them as well as without."""
    straight, first, second = (make_worker(model_folder, "learner.dtype=bfloat16") for _ in range(3))
    target = {name: p.flatten()[0].item() + 1.0 for name, p in straight._policy.hf.named_parameters()}
    for _ in range(2):
        refresh(straight, 0.001, target)
    refresh(first, 0.001, target)
    first.save(str(tmp_path))
    second.load(str(tmp_path))
    refresh(second, 0.001, target)
    assert straight._precise.keys() == second._precise.keys() == target.keys()
    for name, value in straight._precise.items():
        assert torch.equal(value, second._precise[name]), name


def test_a_whole_replacement_needs_no_float32_copy(model_folder: Path) -> None:
    worker = make_worker(model_folder, "learner.dtype=bfloat16")
    names = [name for name, _ in worker._policy.hf.named_parameters()]
    refresh(worker, 0.001, dict.fromkeys(names, 1.0))
    refresh(worker, 1.0, dict.fromkeys(names, 0.5))
    assert worker._precise == {}
    assert all(bool((p == 0.5).all()) for p in worker._policy.hf.parameters())


def test_another_worker_takes_over_the_weights_unrounded_and_in_parts(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlsys.reference.worker.PART_BYTES", 50_000)
    source, new = (make_worker(model_folder, "learner.dtype=bfloat16") for _ in range(2))
    refresh(source, 0.001, {name: p.flatten()[0].item() + 1.0 for name, p in source._policy.hf.named_parameters()})
    is_last, number = False, 0
    while not is_last:
        is_last, part = source.read(number)
        new.stage(part)
        number += 1
    new.blend(1.0)
    assert number > 2
    wanted, found = source._policy.hf.state_dict(), new._policy.hf.state_dict()
    assert all(torch.equal(found[name], value) for name, value in wanted.items())
    assert source._precise.keys() == new._precise.keys()
    assert all(torch.equal(new._precise[name], value) for name, value in source._precise.items())
