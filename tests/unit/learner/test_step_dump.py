"""A dumped batch comes back as it was, setup included; fingerprints tell bits, size and direction apart."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from rlsys.config.compose import load_config
from rlsys.learner.fingerprint import Fingerprint
from rlsys.learner.rank_batch import TrainItem
from rlsys.learner.replay import setup_from_json
from rlsys.learner.setup import PolicySetup
from rlsys.learner.step_dump import StepRecord, StepRecorder, UpdateRecord, dumped_items
from rlsys.run_folder.replay import read_dump, write_record
from rlsys.types import ExperienceRow, Trajectory, ValueEstimate


def items(*lengths: int, with_critic: bool) -> list[TrainItem]:
    chance = np.random.default_rng(sum(lengths))

    def floats(length: int) -> np.ndarray:
        return chance.normal(size=length).astype(np.float32)

    found = []
    for number, length in enumerate(lengths):
        ids = chance.integers(0, 99, length).astype(np.int32)
        trajectory = Trajectory(ids, ids > 40, floats(length), (), "stop", 0)
        estimate = ValueEstimate(*(floats(length) for _ in range(3))) if with_critic else None
        row = ExperienceRow(10 * length + number, number, 1, 0.1, 1 / 3, length, int((ids > 40).sum()))
        found.append(TrainItem(row, trajectory, None if with_critic else floats(length), estimate))
    return found


def plain(batch: list[list[TrainItem]]) -> str:
    """Everything in it as text, with the arrays' dtypes."""
    rows = [[asdict(item) for item in part] for part in batch]
    return json.dumps(rows, default=lambda array: [str(array.dtype), array.tolist()])


@pytest.mark.parametrize("with_critic", [False, True])
def test_the_batch_comes_back_as_it_was(tmp_path: Path, with_critic: bool) -> None:
    engine = SimpleNamespace(module=torch.nn.Linear(2, 2))
    batch = [items(5, 3, with_critic=with_critic), items(4, with_critic=with_critic)]
    StepRecorder(engine).dump_arrays(tmp_path, 0, batch)
    write_record(tmp_path, {"num_ranks": 1})
    _, (arrays,) = read_dump(tmp_path)
    assert plain(dumped_items(arrays)) == plain(batch)


def test_a_rank_without_rows_has_as_many_minibatches(tmp_path: Path) -> None:
    StepRecorder(SimpleNamespace(module=torch.nn.Linear(2, 2))).dump_arrays(tmp_path, 0, [[], []])
    write_record(tmp_path, {"num_ranks": 1})
    assert dumped_items(read_dump(tmp_path)[1][0]) == [[], []]


def test_the_setup_comes_back_as_it_was() -> None:
    options = ["algorithm=dapo", "learner.lora.rank=4", "algorithm.corrections=[{name: truncate}]"]
    written = json.dumps(asdict(PolicySetup.from_config(load_config(options), "model", 64)))
    assert json.dumps(asdict(setup_from_json(json.loads(written)))) == written


def test_the_record_comes_back_as_it_was() -> None:
    prints = {"a": Fingerprint.of(torch.arange(5.0))}
    record = StepRecord(prints, [UpdateRecord(0.1, 0.2, prints), UpdateRecord(0.3, 0.4)])
    assert StepRecord.from_json(json.loads(json.dumps(asdict(record)))) == record


def test_fingerprints_tell_bits_size_and_direction_apart() -> None:
    tensor = torch.randn(3000, generator=torch.Generator().manual_seed(0))
    first = Fingerprint.of(tensor)
    assert Fingerprint.of(tensor.clone().view(30, 100)) == first
    rounded = Fingerprint.of(tensor * (1 + 1e-6))
    assert rounded.bits != first.bits
    assert rounded.is_near(first, 1e-4)
    assert not Fingerprint.of(tensor * 1.01).is_near(first, 1e-4)
    assert not Fingerprint.of(tensor.flip(0)).is_near(first, 1e-4)  # as long, in another direction
    assert not Fingerprint.of(tensor * float("nan")).is_near(first, 1e-4)
    assert Fingerprint.of(torch.full((7,), -0.0)).bits != Fingerprint.of(torch.zeros(7)).bits
