"""An adapter packed for the engines, and the sums by which its arrival is checked."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from peft import PeftConfig
from safetensors.torch import load_file

from rlsys.config.learner_schema import LoraConfig
from rlsys.errors import WorkerError
from rlsys.models.lora import peft_config, write_adapter
from rlsys.models.parameters import adapter_layers, adapter_parameters
from rlsys.weights.packed_adapter import check_sums, pack_adapter, tensor_sums
from tests.unit.models.test_lora import changed

RSLORA = LoraConfig(rank=4, alpha=8.0, use_rslora=True)


def test_sums_differ_between_adapters(model_folder: Path) -> None:
    policy = changed(str(model_folder), LoraConfig(rank=4, alpha=8.0))
    state = {name: parameter.detach() for name, parameter in adapter_parameters(policy.hf).items()}
    description = {"r": 4, "lora_alpha": 8, "use_rslora": False}
    sums = tensor_sums(state, description)
    assert sums["A"][0] == sums["B"][0] == len(adapter_layers(policy.hf))
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
    """After Adam's first step all entries of B are equal, so all of them round in the same direction."""
    state = {"a.lora_B.weight": torch.full((64, 8), 1e-5).bfloat16(), "a.lora_A.weight": torch.ones(8, 64).bfloat16()}
    description = {"r": 8, "lora_alpha": 32, "use_rslora": True}
    in_engine = state["a.lora_B.weight"].clone()
    in_engine *= 32 / 8**0.5  # as vLLM does, in place
    held = {"A": (1, 512.0), "B": (1, float(in_engine.double().abs().sum()))}
    check_sums(tensor_sums(state, description), held, "rollout/0")


def test_a_packed_adapter_is_the_folder_that_peft_writes(model_folder: Path, tmp_path: Path) -> None:
    policy = changed(str(model_folder), RSLORA)
    state = {name: parameter.detach().bfloat16() for name, parameter in adapter_parameters(policy.hf).items()}
    config = peft_config(RSLORA, str(model_folder))
    sent = pickle.loads(pickle.dumps(pack_adapter(state, config.to_dict())))
    sent.write(tmp_path / "sent")
    write_adapter(tmp_path / "saved", state, config)
    sent_file, saved_file = (load_file(tmp_path / name / "adapter_model.safetensors") for name in ("sent", "saved"))
    assert set(sent_file) == set(saved_file)
    assert all(torch.equal(sent_file[name], saved_file[name]) for name in saved_file)
    ours, peft_s = (PeftConfig.from_pretrained(str(tmp_path / name)) for name in ("sent", "saved"))
    for key in ("r", "lora_alpha", "use_rslora", "target_modules", "base_model_name_or_path", "task_type"):
        assert getattr(ours, key) == getattr(peft_s, key)
