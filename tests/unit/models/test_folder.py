"""A folder written from a base model: the base's settings neither stop the writing nor change."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from transformers import AutoModelForCausalLM

from rlsys.models.folder import base_dtype, base_files, empty_model, write_model
from rlsys.weights.gather import full_state

# transformers loads all of these and refuses to write them.
GENERATION = [
    {"temperature": 0.6, "top_p": 0.9},
    {"do_sample": False, "temperature": 0.0},
    {"pad_token_id": -1},
    {"early_stopping": True, "num_beams": 1},
]


@pytest.fixture
def base(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "base"))


def change(file: Path, **values: Any) -> None:
    content = json.loads(file.read_text()) | values
    file.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))


def write(base: Path, target: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(base)
    dtype = base_dtype(str(base))
    write_model(target, hf, full_state(hf, 0, dtype), dtype, base_files(str(base)))


@pytest.mark.parametrize("settings", GENERATION)
def test_generation_settings_are_the_base_s_to_the_byte(base: Path, tmp_path: Path, settings: dict[str, Any]) -> None:
    (base / "generation_config.json").write_text(json.dumps(settings))
    write(base, tmp_path / "out")
    assert (tmp_path / "out" / "generation_config.json").read_text() == json.dumps(settings)
    AutoModelForCausalLM.from_pretrained(tmp_path / "out")


def test_generation_settings_in_the_model_s_own_config_are_kept_too(base: Path, tmp_path: Path) -> None:
    (base / "generation_config.json").unlink()
    change(base / "config.json", temperature=0.6)
    write(base, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "generation_config.json").read_text())["temperature"] == 0.6


def test_files_that_only_the_base_has_travel(base: Path, tmp_path: Path) -> None:
    names = ("preprocessor_config.json", "tokenizer.model", "modeling_mine.py")
    for name in names:
        (base / name).write_text(name)
    (base / "training_args.bin").write_text("of another trainer")
    write(base, tmp_path / "out")
    assert all((tmp_path / "out" / name).read_text() == name for name in names)
    assert not (tmp_path / "out" / "training_args.bin").exists()


@pytest.mark.parametrize(
    ("named", "dtype"),
    [
        ({"dtype": "bfloat16"}, torch.bfloat16),
        ({"dtype": None, "torch_dtype": "float16"}, torch.float16),
        ({"dtype": None}, torch.float32),
    ],
)
def test_the_base_s_dtype_is_the_one_that_its_config_names(
    base: Path, named: dict[str, Any], dtype: torch.dtype
) -> None:
    change(base / "config.json", **named)
    assert base_dtype(str(base)) == dtype


def test_the_config_written_is_the_base_s(base: Path, tmp_path: Path) -> None:
    write(base, tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text()) == json.loads((base / "config.json").read_text())


def test_an_empty_model_has_shapes_and_no_memory(base: Path) -> None:
    hf = empty_model(str(base))
    assert {parameter.device.type for parameter in hf.parameters()} == {"meta"}
    assert hf.num_parameters() == AutoModelForCausalLM.from_pretrained(base).num_parameters()


def test_a_large_model_is_written_in_several_files(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = huggingface_hub.split_torch_state_dict_into_shards
    monkeypatch.setattr(
        huggingface_hub, "split_torch_state_dict_into_shards", functools.partial(whole, max_shard_size=20_000)
    )
    write(base, tmp_path / "out")
    assert len(list((tmp_path / "out").glob("model-*-of-*.safetensors"))) > 1
    given, written = (AutoModelForCausalLM.from_pretrained(folder) for folder in (base, tmp_path / "out"))
    for name, parameter in given.named_parameters():
        assert torch.equal(parameter, written.get_parameter(name)), name
