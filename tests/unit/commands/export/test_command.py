"""`rlsys export` of runs made by hand: what it writes is, for transformers, the policy that the checkpoint holds."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch
from omegaconf import OmegaConf
from transformers import AutoModelForCausalLM, AutoTokenizer

from rlsys.cli import execute
from rlsys.commands.export.command import merge_adapter
from rlsys.config.compose import load_config
from rlsys.config.learner_schema import LoraConfig
from rlsys.errors import ConfigError
from rlsys.models.lora import peft_config, write_adapter
from rlsys.models.parameters import adapter_parameters, exported_parameters
from tests.unit.models.test_lora import changed, logprobs, oracle, untied

__all__ = ["untied"]
LORA = LoraConfig(rank=4, alpha=8.0, use_rslora=True)


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A run of two steps; what its checkpoints hold is the test's."""
    folder = tmp_path / "run"
    folder.mkdir()
    OmegaConf.save(OmegaConf.structured(load_config(["learner.lora.rank=4"])), folder / "config.yaml")
    rows = [{"step": step, "reward/total/mean": 0.1 * step} for step in (1, 2)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def checkpoint(run_dir: Path, step: int = 2) -> Path:
    folder = run_dir / "checkpoints" / f"step-{step:06d}"
    folder.mkdir(parents=True)
    (folder / "state.json").write_text(f'{{"step": {step}, "prompt_cursor": 0}}')
    return folder


def loaded(folder: Path) -> torch.Tensor:
    AutoTokenizer.from_pretrained(folder)
    return oracle(AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval())


def test_an_adapter_alone_and_merged(run_dir: Path, untied: str, tokenizer: Any, capsys: Any) -> None:
    policy = changed(untied, LORA)
    adapter = checkpoint(run_dir) / "adapter"
    tensors = {name: parameter.detach() for name, parameter in adapter_parameters(policy.hf).items()}
    write_adapter(adapter, tensors, peft_config(LORA, untied))
    tokenizer.save_pretrained(adapter)
    execute(["export", str(run_dir)])
    assert "the adapter after 2 steps" in capsys.readouterr().out
    execute(["export", str(run_dir), "--merge"])
    assert "the policy after 2 steps" in capsys.readouterr().out
    alone, merged = run_dir / "export" / "step-000002", run_dir / "export" / "step-000002-merged"
    assert (alone / "adapter_model.safetensors").is_file()
    assert not (merged / "adapter_model.safetensors").exists()
    for folder in (alone, merged):
        torch.testing.assert_close(loaded(folder), logprobs(policy), rtol=0, atol=2e-5)
        assert "steps 1 to 2" in (folder / "curve.svg").read_text()
    assert "library_name: peft" in (alone / "README.md").read_text()
    assert "library_name: transformers" in (merged / "README.md").read_text()
    with pytest.raises(ConfigError, match=r"step-000002 exists and is not empty.*--output"):
        execute(["export", str(run_dir)])


def test_whole_weights_of_a_chosen_step(run_dir: Path, untied: str, tokenizer: Any) -> None:
    policies = {step: AutoModelForCausalLM.from_pretrained(untied) for step in (1, 2)}
    for step, policy in policies.items():
        with torch.no_grad():
            policy.lm_head.weight.mul_(step)
        folder = checkpoint(run_dir, step) / "policy"
        policy.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    execute(["export", str(run_dir), "--step", "1", "--output", str(run_dir / "mine")])
    torch.testing.assert_close(loaded(run_dir / "mine"), oracle(policies[1].eval()))
    with pytest.raises(ConfigError, match="holds no adapter, so there is nothing to merge"):
        execute(["export", str(run_dir), "--merge"])


@pytest.mark.parametrize(("wanted", "dtype"), [(None, torch.bfloat16), ("float32", torch.float32)])
def test_a_merged_model_has_the_base_s_dtype_and_settings_and_the_run_s_template(
    untied: str, tokenizer: Any, tmp_path: Path, wanted: str | None, dtype: torch.dtype
) -> None:
    base, adapter, target = tmp_path / "base", tmp_path / "adapter", tmp_path / "out"
    AutoModelForCausalLM.from_pretrained(untied, dtype=torch.bfloat16).save_pretrained(base)
    settings = '{"temperature": 0.6, "top_p": 0.9}'  # transformers loads it and refuses to write it
    (base / "generation_config.json").write_text(settings)
    policy = changed(str(base), LORA)
    tensors = {name: parameter.detach() for name, parameter in adapter_parameters(policy.hf).items()}
    write_adapter(adapter, tensors, peft_config(LORA, str(base)))
    ours = copy.deepcopy(tokenizer)
    ours.chat_template = "{{ messages[0].content }}!"
    ours.save_pretrained(adapter)
    merge_adapter(str(base), adapter, target, dtype=wanted, trust_remote_code=False)
    merged = AutoModelForCausalLM.from_pretrained(target)
    assert {parameter.dtype for parameter in merged.parameters()} == {dtype}
    expected = {parameter.name: parameter.read() for parameter in exported_parameters(policy.hf)}
    for name, parameter in merged.named_parameters():
        torch.testing.assert_close(parameter, expected[name].to(dtype), msg=name)
    assert (target / "generation_config.json").read_text() == settings
    again = AutoTokenizer.from_pretrained(target)
    assert again.chat_template == ours.chat_template
    assert again.special_tokens_map == tokenizer.special_tokens_map
