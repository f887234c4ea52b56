"""A copy of a rank's state holds the values of its moment, takes no more room than the state, and is given back."""

from __future__ import annotations

import gc
import io
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from rlsys.learner.host_copy import OWN_PAGES, HostCopy


def host_copy(state: Any) -> Any:
    copy = HostCopy(state)
    copy.fill()
    return copy.take()


def written(state: Any) -> bytes:
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return buffer.getvalue()


def test_it_is_written_as_the_state_was_whatever_training_does_then() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(600, 600), torch.nn.BatchNorm1d(600)).to(torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())

    def train() -> None:
        model(torch.ones(2, 600, dtype=torch.bfloat16)).float().pow(2).sum().backward()
        optimizer.step()

    train()
    scaler = SimpleNamespace(scale=8)
    weights: Any = model.state_dict()
    state: dict[str, Any] = {
        "module": weights,
        "optimizer": optimizer.state_dict(),
        "scaler": scaler,
        "shape": (1, [2]),
    }
    before = written(state)
    copied: Any = host_copy(state)
    assert copied["module"]._metadata == weights._metadata
    assert type(copied["module"]) is OrderedDict
    train()
    scaler.scale = 4
    state["shape"][1].append(3)
    assert written(state) != before
    again = torch.load(io.BytesIO(before), weights_only=False)
    found = torch.load(io.BytesIO(written(copied)), weights_only=False)
    assert (found["scaler"], found["shape"]) == (SimpleNamespace(scale=8), (1, [2]))
    for name in ("module", "optimizer"):
        torch.testing.assert_close(found[name], again[name], rtol=0, atol=0)


def test_only_tensors_are_copied_late() -> None:
    steps = [1]
    state: dict[str, Any] = {"weight": torch.zeros(2), "steps": steps}
    copy = HostCopy(state)
    steps.append(2)
    state["weight"] += 1  # `Rank` does not let this happen
    state["weight"] = torch.full((2,), 7.0)
    copy.fill()
    taken = copy.take()
    assert (taken["weight"].tolist(), taken["steps"]) == ([1.0, 1.0], [1])


def test_what_shares_memory_shares_it_in_the_copy() -> None:
    flat = torch.arange(OWN_PAGES, dtype=torch.float32)
    state = {"flat": flat, "tied": flat, "part": flat[10:].view(2, -1).t(), "empty": [torch.empty(0), torch.empty(0)]}
    copied = host_copy(state)
    flat += 1
    assert copied["part"].data_ptr() == copied["flat"].data_ptr() + 40
    torch.testing.assert_close(copied["part"] + 1, state["part"])
    assert len(written(copied)) < 1.01 * flat.nbytes
    assert [empty.numel() for empty in copied["empty"]] == [0, 0]


@pytest.mark.parametrize("requires_grad", [True, False])
def test_whether_a_tensor_is_trained_is_kept(requires_grad: bool) -> None:
    assert host_copy(torch.zeros(3, requires_grad=requires_grad)).requires_grad is requires_grad


def test_its_memory_goes_back_to_the_system(request: pytest.FixtureRequest) -> None:
    def resident() -> int:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("RssAnon"))

    state = {"parts": [torch.ones(16 * OWN_PAGES // 4) for _ in range(8)]}
    gc.disable()  # as in a rank, where collections are rare
    request.addfinalizer(gc.enable)
    before = resident()
    copied = host_copy(state)
    held = resident() - before
    assert held > 7 * 16 * OWN_PAGES
    del copied
    assert resident() - before < held / 8
