"""Adapters inside a policy, compared with peft's own model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel, get_peft_model_state_dict
from transformers import AutoModelForCausalLM

from rlsys.config.build_schema import ModelBuild
from rlsys.config.learner_schema import LoraConfig
from rlsys.errors import ConfigError
from rlsys.models.lora import (
    adapted_layers,
    add_adapters,
    layers_in,
    layers_of,
    load_adapter,
    peft_config,
    set_dropout,
    without_adapters,
    write_adapter,
)
from rlsys.models.packing import TokenRow, token_batch
from rlsys.models.parameters import adapter_parameters, exported_parameters
from rlsys.models.policy import PolicyModel, load_policy
from rlsys.models.tiny import build_model, save_model
from tests.unit.conftest import TINY

CASES = {
    "plain": LoraConfig(rank=4, alpha=8.0),
    "rslora": LoraConfig(rank=4, alpha=8.0, use_rslora=True),
    "dora": LoraConfig(rank=4, alpha=8.0, use_dora=True),
    "some": LoraConfig(rank=2, alpha=8.0, target_modules=["q_proj", "down_proj"]),
    "saved": LoraConfig(rank=2, alpha=8.0, modules_to_save=["lm_head", "norm"]),
}


@pytest.fixture(scope="module")
def untied(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> str:
    folder = tmp_path_factory.mktemp("untied")
    build = ModelBuild(**TINY, tie_word_embeddings=False)
    save_model(build_model(build, tokenizer, seed=0), tokenizer, folder)
    return str(folder)


def changed(path: str, lora: LoraConfig) -> PolicyModel:
    """Load a policy with an adapter that changes its outputs."""
    policy = load_policy(path, torch.float32, max_tokens=64, lora=lora)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in adapter_parameters(policy.hf).values():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    return policy


def logprobs(policy: PolicyModel) -> torch.Tensor:
    ids = np.arange(5, 25)
    with torch.no_grad():
        found, _ = policy(token_batch([TokenRow(ids, ids > 5)], policy.layout), 1.0)
    return found


def oracle(hf: Any) -> torch.Tensor:
    """Compute the same with a plain transformers model."""
    ids = torch.arange(5, 25)[None]
    with torch.no_grad():
        scores = hf(ids).logits.log_softmax(-1)
    found = scores[0, :-1].gather(1, ids[0, 1:, None])[:, 0]
    return torch.cat([torch.zeros(1), found])[None]


@pytest.mark.parametrize("case", CASES)
def test_what_is_written_is_what_peft_reads(untied: str, tmp_path: Path, case: str) -> None:
    policy = changed(untied, CASES[case])
    tensors = {name: parameter.detach() for name, parameter in adapter_parameters(policy.hf).items()}
    write_adapter(tmp_path, tensors, peft_config(CASES[case], untied))
    loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(untied), str(tmp_path)).eval()
    assert set(tensors) == set(get_peft_model_state_dict(loaded))
    torch.testing.assert_close(logprobs(policy), oracle(loaded), rtol=0, atol=2e-5)
    merged = loaded.merge_and_unload().state_dict()
    for exported in exported_parameters(policy.hf):
        torch.testing.assert_close(exported.read(), merged[exported.name], rtol=0, atol=1e-6)
    again = load_policy(untied, torch.float32, max_tokens=64, lora=CASES[case])
    load_adapter(again.hf, str(tmp_path))
    assert torch.equal(logprobs(again), logprobs(policy))


@pytest.mark.parametrize("case", CASES)
def test_the_exported_are_the_parameters_of_the_model_without_adapters(untied: str, case: str) -> None:
    plain = load_policy(untied, torch.float32, max_tokens=64).hf
    policy = load_policy(untied, torch.float32, max_tokens=64, lora=CASES[case])
    expected = [(name, tuple(parameter.shape)) for name, parameter in plain.named_parameters()]
    found = [(exported.name, exported.shape) for exported in exported_parameters(policy.hf)]
    assert sorted(found) == sorted(expected)
    for exported in exported_parameters(policy.hf):  # a fresh adapter changes nothing
        torch.testing.assert_close(exported.read(), plain.get_parameter(exported.name), rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_off_is_the_model_as_it_was_and_on_again_it_trains(untied: str, case: str) -> None:
    policy = changed(untied, CASES[case])
    before, trained = logprobs(policy), [name for name, p in policy.named_parameters() if p.requires_grad]
    with without_adapters(policy):
        assert torch.equal(logprobs(policy), logprobs(load_policy(untied, torch.float32, max_tokens=64)))
    assert not torch.allclose(before, logprobs(load_policy(untied, torch.float32, max_tokens=64)), atol=1e-3)
    assert torch.equal(logprobs(policy), before)
    assert [name for name, p in policy.named_parameters() if p.requires_grad] == trained
    assert all(".lora_" in name or ".modules_to_save." in name for name in trained)


def test_gradients_are_peft_s(untied: str) -> None:
    """Through rlsys's heads, layouts and linear layers."""
    lora = CASES["plain"]
    policy = changed(untied, lora)
    ids = np.arange(5, 25)
    ours, _ = policy(token_batch([TokenRow(ids, ids > 5)], policy.layout), 1.0)
    ours.sum().backward()
    hf = AutoModelForCausalLM.from_pretrained(untied)
    add_adapters(hf, lora)
    for name, parameter in adapter_parameters(policy.hf).items():
        adapter_parameters(hf)[name].data.copy_(parameter.detach())
    rows = torch.from_numpy(ids)[None]
    hf(rows).logits.log_softmax(-1)[0, :-1].gather(1, rows[0, 1:, None]).sum().backward()
    theirs = adapter_parameters(hf)
    for name, parameter in adapter_parameters(policy.hf).items():
        torch.testing.assert_close(parameter.grad, theirs[name].grad, rtol=1e-4, atol=1e-4)
    assert policy.hf.get_output_embeddings().weight.grad is None


@pytest.mark.parametrize("use_dora", [False, True])
def test_dropout_only_where_it_is_asked_for(untied: str, use_dora: bool) -> None:
    policy = changed(untied, LoraConfig(rank=4, alpha=8.0, dropout=0.5, use_dora=use_dora))
    assert torch.equal(logprobs(policy), logprobs(policy))
    torch.manual_seed(0)
    set_dropout(policy, is_active=True)
    assert not torch.equal(logprobs(policy), logprobs(policy))
    set_dropout(policy, is_active=False)
    assert torch.equal(logprobs(policy), logprobs(policy))


def test_adapters_that_engines_can_serve_alone() -> None:
    assert [lora.syncs_adapter_only for lora in CASES.values()] == [True, True, False, True, False]
    assert not LoraConfig().syncs_adapter_only


def test_what_cannot_be_adapted_is_refused_before_a_weight_is_read(untied: str, model_folder: Path) -> None:
    layers = adapted_layers(untied, CASES["saved"], trust_remote_code=False)
    assert layers == ("down_proj", "gate_proj", "k_proj", "o_proj", "q_proj", "up_proj", "v_proj")
    for lora, message in [
        (
            LoraConfig(rank=2, target_modules=["wq"]),
            r"matches no layer.*linear layers are: down_proj, gate_proj.*q_proj",
        ),
        (LoraConfig(rank=2, target_modules=["lm_head"]), "the output layer, which cannot have an adapter"),
        (
            LoraConfig(rank=2, target_modules=["embed_tokens", "q_proj"]),
            r"a layer of type Embedding; only linear layers .*: name those you want of down_proj, gate_proj",
        ),
    ]:
        with pytest.raises(ConfigError, match=message):
            adapted_layers(untied, lora, trust_remote_code=False)
    with pytest.raises(ConfigError, match=r"names '(lm_head|model.embed_tokens)', whose matrix is both"):
        adapted_layers(str(model_folder), CASES["saved"], trust_remote_code=False)


def test_layers_of_an_adapter_s_folder(untied: str, tmp_path: Path) -> None:
    assert layers_in(str(tmp_path)) == ()  # an older format: nothing is known
    policy = changed(untied, CASES["some"])
    tensors = {name: p.detach() for name, p in adapter_parameters(policy.hf).items()}
    write_adapter(tmp_path, tensors, peft_config(CASES["some"], untied))
    assert layers_in(str(tmp_path)) == ("down_proj", "q_proj")
    assert layers_of([*tensors, "base_model.model.layers.0.mlp.experts.3.up_proj.lora_A.weight"]) == ()


def test_an_adapter_of_another_shape_is_refused(untied: str, tmp_path: Path) -> None:
    policy = changed(untied, CASES["plain"])
    with pytest.raises(ConfigError, match=r"holds no adapter_model.safetensors"):
        load_adapter(policy.hf, str(tmp_path))
    write_adapter(tmp_path, dict(adapter_parameters(policy.hf)), peft_config(CASES["plain"], untied))
    other = load_policy(untied, torch.float32, max_tokens=64, lora=LoraConfig(rank=2, alpha=8.0))
    with pytest.raises(ConfigError, match=r"does not fit learner\.lora"):
        load_adapter(other.hf, str(tmp_path))
    some = load_policy(untied, torch.float32, max_tokens=64, lora=CASES["some"])
    with pytest.raises(ConfigError, match=r"does not fit learner\.lora"):
        load_adapter(some.hf, str(tmp_path))
