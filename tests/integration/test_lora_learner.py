"""Adapters in the learner: every ZeRO stage gives the same gradient, checkpoints hold the adapter."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from rlsys.config.compose import load_config
from rlsys.learner.policy_group import PolicyGroup
from rlsys.models.packing import TokenRow, token_batch
from rlsys.models.policy import load_policy
from rlsys.models.tiny import build_model, build_tokenizer, save_model
from rlsys.rollout.trajectory import summary_of
from rlsys.runtime.cluster import Cluster
from rlsys.types import Prompt, RolloutGroup, TrajectoryRef
from rlsys.weights.packed_adapter import PackedAdapter
from tests.integration.runs import kill, wait
from tests.integration.test_learner import cluster, experience, start_learner, trajectories

__all__ = ["cluster"]
LORA = ["learner.lora.rank=4", "learner.lora.alpha=8"]


def adapter_after(
    cluster: Cluster, model: str, overrides: list[str], folder: Path, *, merged: bool = False
) -> dict[str, torch.Tensor]:
    """Return a fresh adapter's tensors after one update."""
    group, _ = start_learner(cluster, model, [*LORA, *overrides])
    try:
        metrics = wait(group.update(experience())).metrics
        assert metrics["policy/grad_norm"] > 1e-3
        wait(group.save(str(folder)))
    finally:
        kill(group)
    assert (folder / "policy").exists() == merged
    return load_file(folder / "adapter" / "adapter_model.safetensors")


@pytest.fixture(scope="module")
def one_rank(cluster: Cluster, model: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    """One rank's adapter; that the base's files name bfloat16 does not round an adapter in float32."""
    folder = tmp_path_factory.mktemp("one")
    shutil.copytree(model, folder / "base")
    config = json.loads((folder / "base" / "config.json").read_text())
    (folder / "base" / "config.json").write_text(json.dumps({**config, "dtype": "bfloat16"}))
    return adapter_after(cluster, str(folder / "base"), [], folder)


@pytest.mark.parametrize("stage", [*(pytest.param(stage, marks=pytest.mark.long) for stage in (0, 1, 2)), 3])
def test_the_gradient_is_the_same_in_every_stage_on_two_ranks(
    cluster: Cluster, model: str, tmp_path: Path, one_rank: dict[str, torch.Tensor], stage: int
) -> None:
    overrides = ["learner.num_workers=2", f"learner.zero_stage={stage}", "learner.microbatch_tokens=40"]
    found = adapter_after(cluster, model, overrides, tmp_path)
    assert set(found) == set(one_rank)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, one_rank[name], rtol=0, atol=2e-5)
    assert any(tensor.abs().max() > 0 for name, tensor in found.items() if ".lora_B." in name)


@pytest.mark.long
def test_dora_and_whole_modules_are_the_same_where_matrices_are_divided(cluster: Cluster, tmp_path: Path) -> None:
    """DoRA reads a matrix outside the layer that owns it. DeepSpeed leaves small ones whole on every rank: here every
    projection has more than its 100,000 elements."""
    build = load_config(
        ["experiment=quickstart", "model.build.num_layers=1", "model.build.hidden_size=384"]
    ).model.build
    tokenizer = build_tokenizer(build.tokenizer)
    save_model(build_model(build, tokenizer, seed=0), tokenizer, tmp_path / "model")
    options = ["learner.lora.use_dora=true", "learner.lora.modules_to_save=[norm]"]
    options += ["learner.lora.target_modules=[q_proj,o_proj]"]
    model = str(tmp_path / "model")
    alone = adapter_after(cluster, model, options, tmp_path / "one", merged=True)
    divided = ["learner.num_workers=2", "learner.zero_stage=3", "learner.microbatch_tokens=40"]
    found = adapter_after(cluster, model, [*options, *divided], tmp_path / "two", merged=True)
    assert set(found) == set(alone)
    assert any(".lora_magnitude_vector" in name for name in found)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, alone[name], rtol=0, atol=2e-5)
    policies = [load_file(tmp_path / which / "policy" / "model.safetensors") for which in ("one", "two")]
    for name, tensor in policies[0].items():
        torch.testing.assert_close(policies[1][name], tensor, rtol=0, atol=2e-5)


def test_a_restored_learner_has_its_adapter_and_its_reference_is_the_base(
    cluster: Cluster, model: str, tmp_path: Path
) -> None:
    """ZeRO-3 on two ranks, parts of adapter and optimizer on each, then on one rank."""
    overrides = [*LORA, "learner.num_workers=2", "learner.zero_stage=3", "learner.lora.dropout=0.1"]
    first, _ = start_learner(cluster, model, overrides)
    try:
        wait(first.update(experience()))
        wait(first.save(str(tmp_path)))
        learned, bare = probe(first)
        saved = read_adapter(first)
    finally:
        kill(first)
    second, _ = start_learner(cluster, model, [*overrides, "learner.num_workers=1"])
    try:
        fresh, also_bare = probe(second)
        assert fresh == pytest.approx(also_bare, abs=1e-6)  # a new adapter changes nothing
        assert bare == pytest.approx(fresh, abs=1e-5)  # without the trained one the model is what it was
        wait(second.load(str(tmp_path), {"learner.num_workers": 2, "learner.zero_stage": 3}))
        again, _ = probe(second)
        assert again == pytest.approx(learned, abs=1e-5)
        assert abs(learned - bare).max() > 1e-3
        restored = read_adapter(second)
    finally:
        kill(second)
    assert saved.sums == restored.sums
    assert bytes(saved.file) == bytes(restored.file)


def probe(group: PolicyGroup) -> Any:
    """Return rank 0's log-probabilities of one text, with the adapter and without."""
    return wait(group._each("probe", np.arange(5, 15), what="probe"))


def read_adapter(group: PolicyGroup) -> PackedAdapter:
    """Return the policy's adapter from rank 0."""
    import ray

    _, adapter = group.begin_read_adapter()
    found: PackedAdapter = ray.get(adapter, timeout=60)
    return found


@pytest.mark.parametrize(
    "ranks_and_stage", [pytest.param((1, 1), marks=pytest.mark.long), (2, 3)], ids=["one rank", "two ranks, ZeRO-3"]
)
def test_the_reference_of_every_trajectory_is_the_base_s(
    cluster: Cluster, model: str, ranks_and_stage: tuple[int, int]
) -> None:
    """Groups of very different size: one rank runs out of microbatches before the other."""
    import ray

    ranks, stage = ranks_and_stage
    small = [f"learner.num_workers={ranks}", f"learner.zero_stage={stage}", "learner.microbatch_tokens=24"]
    given = trajectories()
    chunk = ray.put(given)
    sizes = [1, 4, 3]
    groups, first = [], 0
    for number, size in enumerate(sizes):
        members = range(first, first + size)
        pointers = tuple(TrajectoryRef(chunk, index) for index in members)
        summaries = tuple(summary_of(given[index], 0.0, 0.0) for index in members)
        prompt = Prompt(number, "", given[first].token_ids[:4])
        groups.append(RolloutGroup(number, prompt, pointers, summaries))
        first += size
    learner, _ = start_learner(cluster, model, [*LORA, *small, "algorithm.kl.apply_to=reward"])
    try:
        wait(learner.update(experience()))
        scores = wait(learner.reference_scores(groups))
        found = [row for score in scores for row in ray.get(score.logprobs, timeout=60)]
    finally:
        kill(learner)
    plain = load_policy(model, torch.float32, max_tokens=64)
    for trajectory, row in zip(given, found, strict=True):
        batch = token_batch([TokenRow(trajectory.token_ids, trajectory.loss_mask)], plain.layout)
        with torch.no_grad():
            expected, _ = plain(batch, 0.7)
        assert row == pytest.approx(expected[0].numpy(), abs=2e-5)
    assert [len(score.kl_sums) for score in scores] == sizes
