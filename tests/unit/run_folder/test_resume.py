"""A run goes on with the options that its checkpoint's files need, or is refused."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from rlsys.config.compose import load_config
from rlsys.data.order import EpochOrder
from rlsys.errors import ConfigError
from rlsys.preflight.prepared import Prepared
from rlsys.run_folder.checkpoint import RunState
from rlsys.run_folder.checkpoint_writer import save
from rlsys.run_folder.resume import check_fixed_options, fixed_options

PPO = "algorithm=ppo"
LORA = ("learner.lora.rank=4", "learner.lora.target_modules=[q_proj]")


def prepared(*overrides: str, model: str = "/models/mine") -> Prepared:
    config = load_config(["resume=auto", f"model.path={model}", *overrides])
    return Prepared(config, model, 64, [], EpochOrder(1, [0], shuffle=False), [], ())


def write_checkpoint(run_dir: Path, state: RunState) -> None:
    async def write(_: str) -> None:
        pass

    asyncio.run(save(run_dir, state, write, keep=1))


def written(run_dir: Path, of: Prepared) -> None:
    write_checkpoint(run_dir, RunState(5, 0, written_with=fixed_options(of)))


@pytest.mark.parametrize(
    ("then", "now", "said"),
    [
        ([], ["learner.zero_stage=3"], "learner.zero_stage=1 (now 3)"),
        ([], ["learner.dtype=bfloat16"], "learner.dtype=float32 (now bfloat16)"),
        (["learner.zero_stage=0"], ["learner.num_workers=2"], "learner.zero_stage=0 (now 1)"),
        ([PPO], [PPO, "critic.zero_stage=3"], "critic.zero_stage=1 (now 3)"),
        ([], [PPO], "critic.num_workers=none (now 1)"),
        ([PPO], [], "critic.num_workers=1 (now none)"),
        ([], [LORA[0]], "learner.lora.rank=none (now 4)"),
        ([*LORA], [LORA[0]], "learner.lora.target_modules=['q_proj'] (now all-linear)"),
        ([*LORA], [*LORA, "learner.lora.alpha=64"], "learner.lora.alpha=32.0 (now 64.0)"),
        ([*LORA, "learner.lora.use_rslora=true"], [*LORA], "learner.lora.use_rslora=True (now False)"),
        ([*LORA, "model.adapter=/a"], [*LORA, "model.adapter=/b"], "model.adapter=/a (now /b)"),
        ([], ["model.path=/models/other"], "model.path=/models/mine (now /models/other)"),
    ],
)
def test_what_only_loads_with_the_same_options_is_refused_by_name(
    tmp_path: Path, then: list[str], now: list[str], said: str
) -> None:
    written(tmp_path, prepared(*then))
    model = next((text.removeprefix("model.path=") for text in now if "model.path" in text), "/models/mine")
    with pytest.raises(ConfigError) as caught:
        check_fixed_options(prepared(*now, model=model), tmp_path)
    assert said in str(caught.value)
    assert "step-000005 was written with" in str(caught.value)


@pytest.mark.parametrize(
    ("then", "now"),
    [
        ([], ["learner.num_workers=4"]),
        (["learner.num_workers=4"], ["learner.zero_stage=2"]),
        ([PPO, "learner.zero_stage=2"], [PPO, "critic.zero_stage=2", "critic.num_workers=3"]),
        (["learner.zero_stage=0"], ["learner.zero_stage=0", "learner.num_workers=2"]),
        (["learner.zero_stage=3"], ["learner.zero_stage=3", "learner.num_workers=2"]),
    ],
)
def test_ranks_may_change_and_zero_1_and_2_too(tmp_path: Path, then: list[str], now: list[str]) -> None:
    written(tmp_path, prepared(*then))
    check_fixed_options(prepared(*now), tmp_path)


@pytest.mark.parametrize("given", [[], [PPO], list(LORA)])
def test_what_takes_effect_on_a_restored_run_is_not(tmp_path: Path, given: list[str]) -> None:
    written(tmp_path, prepared(*given))
    changed = ["learner.lr=1e-3", "learner.betas=[0.8,0.9]", "train.num_steps=999", "rollout.temperature=0.5"]
    check_fixed_options(prepared(*given, *changed), tmp_path)


def test_an_adapter_s_options_that_were_not_written_down_are_not_compared(tmp_path: Path) -> None:
    then = prepared(*LORA)
    fixed = {key: value for key, value in fixed_options(then).items() if key != "learner.lora.alpha"}
    write_checkpoint(tmp_path, RunState(5, 0, written_with=fixed))
    check_fixed_options(then, tmp_path)
    with pytest.raises(ConfigError, match=r"learner\.lora\.rank"):
        check_fixed_options(prepared(*LORA, "learner.lora.rank=8"), tmp_path)


def test_a_model_built_on_the_spot_may_lie_in_another_cache(tmp_path: Path) -> None:
    before = prepared("model.path=null")
    written(tmp_path, replace(before, model_path="/cache/qwen2-123"))
    check_fixed_options(replace(before, model_path="/elsewhere/qwen2-123"), tmp_path)
    with pytest.raises(ConfigError, match=r"model.path=qwen2-123 \(now qwen2-456\)"):
        check_fixed_options(replace(before, model_path="/cache/qwen2-456"), tmp_path)


def test_a_checkpoint_of_an_earlier_version_is_refused(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, RunState(5, 0))
    with pytest.raises(ConfigError, match="written by an earlier version of rlsys"):
        check_fixed_options(prepared(), tmp_path)


def test_a_run_that_starts_anew_is_not_compared(tmp_path: Path) -> None:
    check_fixed_options(prepared(), tmp_path)
    write_checkpoint(tmp_path, RunState(5, 0))
    check_fixed_options(prepared("resume=never"), tmp_path)
