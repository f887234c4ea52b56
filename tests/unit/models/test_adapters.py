"""Adapters inside a policy, against peft's own model as the oracle."""

from __future__ import annotations

import copy
import os
import pickle
import socket
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftConfig, PeftModel, get_peft_model_state_dict
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from rlsys.config.schema import LoraConfig, ModelBuild
from rlsys.errors import ConfigError, WorkerError
from rlsys.models.adapters import (
    adapter_parameters,
    add_adapters,
    check_adapters,
    layers,
    load_adapter,
    peft_config,
    set_dropout,
    wires,
    without_adapters,
    write_adapter,
)
from rlsys.models.packing import TokenRow, token_batch
from rlsys.models.policy import PolicyModel, load_policy
from rlsys.models.tiny import build_model, save_model
from rlsys.rollout.served_adapters import MEMORY, make_folder, remove_orphans
from rlsys.weights.adapter import check_sums, pack, tensor_sums
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
    """A policy whose adapter does something."""
    policy = load_policy(path, torch.float32, lora=lora)
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
    """The same of a plain transformers model."""
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
    for wire in wires(policy.hf):
        torch.testing.assert_close(wire.read(), merged[wire.name], rtol=0, atol=1e-6)
    again = load_policy(untied, torch.float32, lora=CASES[case])
    load_adapter(again.hf, str(tmp_path))
    assert torch.equal(logprobs(again), logprobs(policy))


@pytest.mark.parametrize("case", CASES)
def test_the_wires_are_the_parameters_of_the_model_without_adapters(untied: str, case: str) -> None:
    plain = load_policy(untied, torch.float32).hf
    policy = load_policy(untied, torch.float32, lora=CASES[case])
    expected = [(name, tuple(parameter.shape)) for name, parameter in plain.named_parameters()]
    found = [(wire.name, wire.shape) for wire in wires(policy.hf)]
    assert sorted(found) == sorted(expected)
    for wire in wires(policy.hf):  # a fresh adapter changes nothing
        torch.testing.assert_close(wire.read(), plain.get_parameter(wire.name), rtol=0, atol=1e-7)


@pytest.mark.parametrize("case", CASES)
def test_off_is_the_model_as_it_was_and_on_again_it_trains(untied: str, case: str) -> None:
    policy = changed(untied, CASES[case])
    before, trained = logprobs(policy), [name for name, p in policy.named_parameters() if p.requires_grad]
    with without_adapters(policy):
        assert torch.equal(logprobs(policy), logprobs(load_policy(untied, torch.float32)))
    assert not torch.allclose(before, logprobs(load_policy(untied, torch.float32)), atol=1e-3)
    assert torch.equal(logprobs(policy), before)
    assert [name for name, p in policy.named_parameters() if p.requires_grad] == trained
    assert all(".lora_" in name or ".modules_to_save." in name for name in trained)


def test_gradients_are_peft_s(untied: str) -> None:
    """Through our heads, layouts and linear layers."""
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


def test_what_travels_alone() -> None:
    assert [lora.syncs_adapter_only for lora in CASES.values()] == [True, True, False, True, False]
    assert not LoraConfig().syncs_adapter_only


def test_what_cannot_be_adapted_is_refused_before_a_weight_is_read(untied: str, model_folder: Path) -> None:
    check_adapters(untied, CASES["saved"], trust_remote_code=False)
    for lora, said in [
        (LoraConfig(rank=2, target_modules=["wq"]), r"names nothing.*linear layers: down_proj, gate_proj.*q_proj"),
        (LoraConfig(rank=2, target_modules=["lm_head"]), "the output layer cannot have an adapter"),
        (LoraConfig(rank=2, target_modules=["embed_tokens", "q_proj"]), "belong to linear layers, not to a Embedding"),
    ]:
        with pytest.raises(ConfigError, match=said):
            check_adapters(untied, lora, trust_remote_code=False)
    with pytest.raises(ConfigError, match=r"names '(lm_head|model.embed_tokens)', whose matrix the model uses at both"):
        check_adapters(str(model_folder), CASES["saved"], trust_remote_code=False)


def test_an_adapter_of_another_shape_is_refused(untied: str, tmp_path: Path) -> None:
    policy = changed(untied, CASES["plain"])
    with pytest.raises(ConfigError, match=r"holds no adapter_model.safetensors"):
        load_adapter(policy.hf, str(tmp_path))
    write_adapter(tmp_path, dict(adapter_parameters(policy.hf)), peft_config(CASES["plain"], untied))
    other = load_policy(untied, torch.float32, lora=LoraConfig(rank=2, alpha=8.0))
    with pytest.raises(ConfigError, match=r"does not fit learner\.lora"):
        load_adapter(other.hf, str(tmp_path))
    some = load_policy(untied, torch.float32, lora=CASES["some"])
    with pytest.raises(ConfigError, match=r"does not fit learner\.lora"):
        load_adapter(some.hf, str(tmp_path))


def test_sums_tell_adapters_apart(untied: str) -> None:
    policy = changed(untied, CASES["plain"])
    state = {name: parameter.detach() for name, parameter in adapter_parameters(policy.hf).items()}
    description = {"r": 4, "lora_alpha": 8, "use_rslora": False}
    sums = tensor_sums(state, description)
    assert sums["A"][0] == sums["B"][0] == len(layers(policy.hf))
    halved = tensor_sums(state, {**description, "lora_alpha": 4})
    assert halved["B"][1] == pytest.approx(sums["B"][1] / 2)
    check_sums(sums, sums, "rollout/0")
    with pytest.raises(WorkerError):  # a thousandth of one kind's sum is missing
        check_sums({"A": sums["A"], "B": (sums["B"][0], sums["B"][1] * 1.001)}, sums, "rollout/0")
    missing = copy.copy(state)
    missing.pop(next(name for name in state if ".lora_B." in name))
    for wrong in (tensor_sums(missing, description), halved):
        with pytest.raises(WorkerError, match=r"rollout/0: the engine holds .* matrices B"):
            check_sums(sums, wrong, "rollout/0")


def test_sums_are_of_what_an_engine_holds_in_half_precision() -> None:
    """After Adam's first step all entries of B are alike: what rounds one of them rounds all the same way."""
    state = {"a.lora_B.weight": torch.full((64, 8), 1e-5).bfloat16(), "a.lora_A.weight": torch.ones(8, 64).bfloat16()}
    description = {"r": 8, "lora_alpha": 32, "use_rslora": True}
    in_engine = state["a.lora_B.weight"].clone()
    in_engine *= 32 / 8**0.5  # as vLLM does, in place
    held = {"A": (1, 512.0), "B": (1, float(in_engine.double().abs().sum()))}
    check_sums(tensor_sums(state, description), held, "rollout/0")


def test_what_travels_is_the_folder_that_peft_writes(untied: str, tmp_path: Path) -> None:
    policy = changed(untied, CASES["rslora"])
    state = {name: parameter.detach().bfloat16() for name, parameter in adapter_parameters(policy.hf).items()}
    config = peft_config(CASES["rslora"], untied)
    sent = pickle.loads(pickle.dumps(pack(state, config.to_dict())))
    sent.write(tmp_path / "sent")
    write_adapter(tmp_path / "saved", state, config)
    sent_file, saved_file = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("sent", "saved"))
    assert set(sent_file) == set(saved_file)
    assert all(torch.equal(sent_file[name], saved_file[name]) for name in saved_file)
    ours, peft_s = (PeftConfig.from_pretrained(str(tmp_path / name)) for name in ("sent", "saved"))
    for key in ("r", "lora_alpha", "use_rslora", "target_modules", "base_model_name_or_path", "task_type"):
        assert getattr(ours, key) == getattr(peft_s, key)


def test_adapters_of_killed_workers_are_removed() -> None:
    alive = make_folder(1000)
    gone = alive.with_name(alive.name.replace(str(os.getpid()), str(2**22 + 1)))
    elsewhere = gone.with_name(gone.name.replace(socket.gethostname(), "another-host"))
    assert len({alive, gone, elsewhere}) == 3
    for folder in (gone, elsewhere):
        folder.mkdir()
    remove_orphans()
    assert alive.is_dir()
    assert not gone.exists()
    assert elsewhere.is_dir()  # nobody here knows whether that process lives
    for folder in (alive, elsewhere):
        folder.rmdir()
    other = make_folder(2**60)  # more than there is room for
    assert MEMORY not in other.parents
    other.rmdir()
