"""Memory counted on the meta device: by hand, and as PyTorch's own tracker counts it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.distributed._tools.mem_tracker import MemTracker

from rlsys.errors import ConfigError
from rlsys.models.meta_memory import MetaMemory, use_kernels_of
from rlsys.models.packing import token_batch
from rlsys.models.policy import empty_policy
from tests.unit.learner.measured_memory import Case

META = torch.device("meta")


def test_storages_count_until_the_last_view_is_gone() -> None:
    with MetaMemory("cpu") as memory:
        one = torch.empty(100, device=META)
        view = one[:10]
        assert memory.total() == 400
        del one
        assert memory.total() == 400
        del view
        assert memory.total() == 0
        torch.empty(10, device=META)
    assert memory.peak.total() == 400


def test_a_gpu_gives_whole_blocks() -> None:
    with MetaMemory("cuda") as memory:
        kept = [torch.empty(size, device=META) for size in (1, 128, 129)]
    assert memory.total() == 512 + 512 + 1024
    assert kept


def test_a_sum_of_exponentials_has_the_shape_and_dtype_of_the_real_one() -> None:
    a, b = torch.zeros(4, 1, dtype=torch.bfloat16), torch.zeros(3, dtype=torch.bfloat16)
    with MetaMemory("cpu") as memory:
        found = torch.logaddexp(a.to(META), b.to(META))
    said = torch.logaddexp(a, b)
    assert (found.shape, found.dtype) == (said.shape, said.dtype)
    assert memory.total() == 4 * 3 * 2


def test_the_peak_is_divided_by_kind() -> None:
    with MetaMemory("cpu") as memory:
        memory.kind = "first"
        kept = torch.empty(10, device=META)
        memory.kind = "second"
        torch.empty(20, device=META)
        torch.empty(5, device=META)
    assert dict(memory.peak) == {"first": 40, "second": 80}
    assert kept.shape == (10,)


def test_parameters_do_not_count() -> None:
    """Of `relu(x @ w)`, [4, 3] each, the backward keeps the result; the product is gone."""
    layer, x = nn.Linear(3, 3, bias=False, device=META), torch.empty(4, 3, device=META)
    memory = MetaMemory("cpu")
    memory.exclude(layer)
    with memory:
        found = torch.relu(layer(x) + layer.weight.sum())
        assert memory.total() == 4 * 3 * 4
        found.sum().backward()
        del found
    assert memory.total() == 3 * 3 * 4  # the gradient


def test_results_whose_size_depends_on_numbers_are_as_large_as_can_be() -> None:
    with MetaMemory("cpu") as memory:
        assert torch.empty(3, 5, device=META).nonzero().shape == (15, 2)
        assert not torch.empty(3, dtype=torch.bool, device=META).all()
    assert memory.peak.total() == 3 * 5 * 4 + 15 * 2 * 8


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_pytorchs_tracker_counts_the_same(model_folder: Path, device: str) -> None:
    """It takes a hundred times as long for a large model."""
    policy = empty_policy(str(model_folder), torch.bfloat16)
    use_kernels_of(policy.hf, device)
    batch = token_batch(Case(()).rows(), policy.layout).to(META)
    memory = MetaMemory("cpu")  # the other one does not round up on the meta device
    memory.exclude(policy)
    with memory:
        policy(batch, 1.0)[0].sum().backward()
    policy.zero_grad()
    tracker = MemTracker()
    tracker.track_external(policy)
    with tracker:
        policy(batch, 1.0)[0].sum().backward()
    total = tracker.get_tracker_snapshot("peak")[META]["Total"]
    weights = sum(tensor.nbytes for tensor in (*policy.parameters(), *policy.buffers()))
    assert memory.peak.total() + weights == pytest.approx(total, rel=0.01)


def test_a_model_that_only_its_weights_explain_has_no_empty_policy(
    model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlsys.models.policy.folder_traits", lambda *_, **__: None)
    with pytest.raises(ConfigError, match="only its weights would"):
        empty_policy(str(model_folder), torch.bfloat16)
