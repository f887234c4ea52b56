"""The memory of a whole run: its parts by hand, what changes them, and the verdict."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest

from rlsys.build.memory import RunMemory, memory_finding, run_memory
from rlsys.build.role_memory import BASE, GAPS, IMPORTED, RoleMemory, largest_microbatch
from rlsys.config.compose import load_config
from rlsys.preflight.prepare import prepare
from rlsys.preflight.prepared import Prepared
from rlsys.runtime.findings import Level
from rlsys.runtime.limits import Limits


def prepared(model: Path, tmp_path: Path, overrides: Sequence[str]) -> Prepared:
    data = tmp_path / "rows.jsonl"
    data.write_text(json.dumps({"prompt": "3+1=", "answer": "4"}) + "\n")
    sizes = ["rollout.max_response_tokens=8", "train.prompts_per_step=2", "train.samples_per_prompt=4"]
    return prepare(load_config([f"model.path={model}", f"data.train={data}", "data.eval=null", *sizes, *overrides]))


def roles(model: Path, tmp_path: Path, *overrides: str) -> dict[str, RoleMemory]:
    return {role.name: role for role in run_memory(prepared(model, tmp_path, overrides)).roles}


def test_roles_and_their_parts(model_folder: Path, tmp_path: Path) -> None:
    found = roles(model_folder, tmp_path, "rollout.kv_cache_gib=0.5", "learner.num_workers=2", "learner.zero_stage=0")
    assert list(found) == ["driver", "ray", "scoring", "rollout", "learner", "imports", "reference", "shared memory"]
    size = found["shared memory"].total  # the model in float32
    assert size == found["rollout"].parts["parameters"] == found["learner"].parts["parameters"]
    assert found["learner"].parts["gradients"] == size
    assert found["learner"].parts["optimizer"] >= 2 * size
    assert found["reference"].parts["parameters"] == 0  # pages of the file
    assert found["rollout"].parts["KV cache"] == 2**29
    learner = found["learner"]
    held = sum(part for name, part in learner.parts.items() if name not in ("base", "gaps", "checkpoint"))
    assert learner.parts["gaps"] == int(GAPS["learner"] * held)
    copy = learner.parts["checkpoint"]
    assert copy == 2 * size + learner.parts["optimizer"]  # for DeepSpeed's files and the policy's folder
    assert learner.total == 2 * learner.each == 2 * (BASE["learner"] + held + int(GAPS["learner"] * held) + copy)
    last_only = roles(model_folder, tmp_path, "checkpoint.every_s=0", "learner.num_workers=2", "learner.zero_stage=0")
    assert last_only["learner"].each == learner.each - copy
    adapter = roles(model_folder, tmp_path, "learner.lora.rank=2")["learner"].parts
    assert adapter["checkpoint"] == adapter["optimizer"]


def test_workers_that_are_not_forked_have_their_libraries_to_themselves(model_folder: Path, tmp_path: Path) -> None:
    forked = roles(model_folder, tmp_path)
    alone = roles(model_folder, tmp_path, "cluster.address=10.0.0.1:6379")
    assert (forked["imports"].total, "imports" in alone) == (BASE["imports"], False)
    assert {name: alone[name].each - forked[name].each for name in IMPORTED if name in alone} == {
        name: size for name, size in IMPORTED.items() if name != "critic"
    }


def test_options_that_save_memory_do(model_folder: Path, tmp_path: Path) -> None:
    plain = roles(model_folder, tmp_path)
    less = roles(
        model_folder, tmp_path, "learner.dtype=bfloat16", "learner.microbatch_tokens=12", "algorithm.kl.coef=0"
    )
    assert less["rollout"].parts["parameters"] == plain["rollout"].parts["parameters"] // 2
    assert less["learner"].parts["activations"] < plain["learner"].parts["activations"]
    assert "reference" not in less
    whole = roles(model_folder, tmp_path, "learner.num_workers=2", "learner.zero_stage=1")
    divided = roles(model_folder, tmp_path, "learner.num_workers=2", "learner.zero_stage=2")
    assert divided["learner"].parts["gradients"] == whole["learner"].parts["gradients"] // 2
    adapters = roles(model_folder, tmp_path, "learner.lora.rank=2")
    assert adapters["learner"].parts["optimizer"] < plain["learner"].parts["optimizer"] / 2
    assert "shared memory" not in adapters


def test_a_small_model_does_not_fill_a_bucket(model_folder: Path, tmp_path: Path) -> None:
    """DeepSpeed allocates 200 MB for it on each rank. ZeRO-3 leaves the rest alone: pages that are not written."""
    found = roles(model_folder, tmp_path, "learner.num_workers=2", "learner.zero_stage=3")
    assert found["learner"].parts["buffers"] < 2**20
    filled = roles(model_folder, tmp_path, "learner.num_workers=2", "learner.zero_stage=1")
    assert filled["learner"].parts["buffers"] >= 4 * 50_000_000


def test_a_critic_is_a_learner_without_logits(model_folder: Path, tmp_path: Path) -> None:
    found = roles(model_folder, tmp_path, "algorithm=ppo")
    assert found["critic"].parts["logits"] == 0 < found["learner"].parts["logits"]
    assert found["critic"].parts["optimizer"] == found["learner"].parts["optimizer"]


def test_the_largest_microbatch_holds_whole_groups_where_they_fit(model_folder: Path, tmp_path: Path) -> None:
    made = prepared(model_folder, tmp_path, [])
    lengths = {limit: len(largest_microbatch(made, limit, "shared_prompt")) for limit in (10_000, 71, 40, 12)}
    assert lengths == {10_000: 8, 71: 4, 40: 4, 12: 1}  # two groups of 4 + 4 * 8 tokens
    assert len(largest_microbatch(made, 24, "padded")) == 2


@pytest.mark.parametrize(
    ("total", "memory", "free", "level"),
    [
        (8.0, 16, 12, Level.OK),
        (11.0, 16, 12, Level.WARN),  # above 90% of what is free
        (18.0, 16, 12, Level.WARN),  # it may need 15% less
        (19.0, 16, 12, Level.FAIL),
    ],
)
def test_the_verdict(total: float, memory: int, free: int, level: Level) -> None:
    gb = 10**9
    run = RunMemory(
        (
            RoleMemory("ray", 1, {"base": gb}),
            RoleMemory("learner", 2, {"activations": int((total - 1) * gb / 2)}, "lower its batch"),
        )
    )
    assert run.total == total * gb
    finding = memory_finding(run, Limits(2, 2, memory * gb, free * gb, 64 * gb))
    assert finding.level == level
    if level != Level.OK:
        assert finding.remedy == f"the largest is learner with {total - 1:.1f} GB: lower its batch"
