"""Tiny models and records shared by the unit tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from rlsys.config.build_schema import ModelBuild, TokenizerBuild
from rlsys.models.tiny import build_model, build_tokenizer, save_model

# Always the same examples: a test that fails on one machine fails on every machine.
settings.register_profile("rlsys", deadline=None, derandomize=True, max_examples=60, database=None)
settings.load_profile("rlsys")

TINY = {
    "hidden_size": 64,
    "num_layers": 2,
    "num_heads": 2,
    "num_kv_heads": 1,
    "intermediate_size": 96,
    "max_context": 64,
}


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    """One token per printable ASCII character."""
    return build_tokenizer(TokenizerBuild())


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory, tokenizer: Any) -> Path:
    """A saved tiny Qwen2 with a context of 64 tokens."""
    folder = tmp_path_factory.mktemp("model") / "tiny"
    save_model(build_model(ModelBuild(**TINY), tokenizer, seed=0), tokenizer, folder)
    return folder
