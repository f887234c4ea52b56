"""Shared by the integration tests."""

from __future__ import annotations

import pytest

from rlsys.config.compose import load_config
from rlsys.models.tiny import build_model, build_tokenizer, save_model


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a two-layer policy."""
    folder = tmp_path_factory.mktemp("model")
    build = load_config(["experiment=quickstart", "model.build.num_layers=2"]).model.build
    tokenizer = build_tokenizer(build.tokenizer)
    save_model(build_model(build, tokenizer, seed=0), tokenizer, folder)
    return str(folder)
