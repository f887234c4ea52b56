"""Predicted memory of a run's GPUs: its parts, who shares a GPU, and the verdict. It needs no GPU."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlsys.build.gpu_memory import GpuMemory, gpu_finding, gpu_memory
from rlsys.build.memory import memory_findings
from rlsys.build.role_memory import RoleMemory
from rlsys.config.compose import load_config
from rlsys.learner.memory import CONTEXT_BYTES, NCCL_BYTES
from rlsys.preflight.prepare import prepare
from rlsys.preflight.prepared import Prepared
from rlsys.runtime.findings import Level
from rlsys.runtime.gpus import Gpu
from rlsys.runtime.limits import Limits

GB = 10**9


def prepared(model: Path, tmp_path: Path, *overrides: str) -> Prepared:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "3+1=", "answer": "4"}) + "\n")
    sizes = ["rollout.max_response_tokens=8", "train.prompts_per_step=2", "train.samples_per_prompt=4"]
    return prepare(load_config([f"model.path={model}", f"data.train={data}", "data.eval=null", *sizes, *overrides]))


def test_a_rank_of_each_role(model_folder: Path, tmp_path: Path) -> None:
    found = gpu_memory(prepared(model_folder, tmp_path, "cluster.num_gpus=4", "learner.num_workers=2"))
    roles = {role.name: role for role in found.roles}
    assert {name: role.count for name, role in roles.items()} == {"rollout": 1, "learner": 2, "reference": 1}
    assert not found.is_shared
    assert roles["rollout"].parts["parameters"] == roles["reference"].parts["parameters"] > 0  # bfloat16
    assert all("base" not in role.parts for role in found.roles)  # the host's
    assert roles["learner"].parts["allowances"] >= CONTEXT_BYTES + NCCL_BYTES > roles["reference"].parts["allowances"]
    assert roles["rollout"].parts["allowances"] >= CONTEXT_BYTES
    config = json.loads((model_folder / "config.json").read_text())
    kept = 2 * config["num_key_value_heads"] * config["head_dim"] * config["num_hidden_layers"] * 2
    assert roles["rollout"].parts["KV cache"] == kept * 12  # 4 tokens of the prompt and 8 of the response


def test_ranks_of_an_engine_divide_its_weights(model_folder: Path, tmp_path: Path) -> None:
    whole, half = (
        gpu_memory(prepared(model_folder, tmp_path, "cluster.num_gpus=4", f"rollout.tensor_parallel_size={ranks}"))
        for ranks in (1, 2)
    )
    assert (whole.roles[0].count, half.roles[0].count) == (1, 2)
    assert half.roles[0].parts["parameters"] == whole.roles[0].parts["parameters"] // 2


def test_one_gpu_holds_all_roles_and_a_copy(model_folder: Path, tmp_path: Path) -> None:
    found = gpu_memory(prepared(model_folder, tmp_path, "cluster.num_gpus=1", "weights.backend=ipc"))
    assert found.is_shared
    assert [role.name for role in found.roles] == ["rollout", "learner", "reference", "copy for the engine"]


def run(*, learner: int, is_shared: bool = False) -> GpuMemory:
    engine = RoleMemory("rollout", 1, {"parameters": 10 * GB}, "raise its share")
    return GpuMemory((engine, RoleMemory("learner", 1, {"gradients": learner * GB}, "lower its batch")), is_shared, 0.5)


@pytest.mark.parametrize(
    ("memory", "gpu", "level", "found"),
    [
        (run(learner=70), Gpu(80 * GB, 79 * GB), Level.OK, "learner needs about 70.0 GB of 79.0 GB"),
        (run(learner=20), Gpu(80 * GB, 79 * GB), Level.OK, "rollout needs about 40.0 GB of 79.0 GB"),  # its share
        (run(learner=80), Gpu(80 * GB, 79 * GB), Level.WARN, "the largest is learner: lower its batch"),
        (run(learner=30, is_shared=True), Gpu(80 * GB, 79 * GB), Level.OK, "all roles together need about 70.0 GB"),
        (run(learner=42, is_shared=True), Gpu(80 * GB, 79 * GB), Level.WARN, "learner: lower its batch"),
        (run(learner=39, is_shared=True), Gpu(78 * GB, 77 * GB), Level.WARN, "lower rollout.gpu_memory_utilization"),
        (run(learner=1), Gpu(18 * GB, 17 * GB), Level.WARN, "gpu_memory_utilization=0.5 gives it 9.0 (predicted"),
        (run(learner=1), None, Level.NOTE, "rollout needs about 10.0 GB (predicted"),
    ],
)
def test_the_verdict_never_refuses(memory: GpuMemory, gpu: Gpu | None, level: Level, found: str) -> None:
    finding = gpu_finding(memory, gpu)
    assert finding.level == level
    assert found in finding.text
    assert "no GPU has confirmed it yet" in finding.found


def test_a_run_with_gpus_is_compared_with_them(
    model_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rlsys.build.memory.fullest_gpu", lambda: Gpu(80 * GB, 79 * GB))
    made = prepared(model_folder, tmp_path, "cluster.num_gpus=3")
    (finding,) = memory_findings(made, Limits(2, 2, GB, GB, GB))
    assert (finding.name, finding.level) == ("memory of a GPU", Level.OK)
    made.config.learner.lora.quantize_base = "nf4"
    (finding,) = memory_findings(made, Limits(2, 2, GB, GB, GB))
    assert (finding.level, "4 bits" in finding.found) == (Level.NOTE, True)
