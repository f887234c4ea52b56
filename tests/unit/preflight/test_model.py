"""Models that cannot be trained as they are asked to be, refused from config.json alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from transformers import AutoConfig

from rlsys.config.compose import load_config
from rlsys.errors import ConfigError
from rlsys.preflight.model import check_model, unused_settings

PHIMOE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "original_max_position_embeddings": 4096,
    "short_factor": [1.0] * 64,
    "long_factor": [2.0] * 64,
    "short_mscale": 1.2,
    "long_mscale": 1.3,
}


@pytest.mark.parametrize(
    ("family", "settings", "overrides", "message"),
    [
        ("mistral", {}, ["learner.packing=packed"], r"learner\.packing=packed is not possible .*sliding_window"),
        ("gptj", {}, ["learner.packing=shared_prompt"], r"learner\.packing=shared_prompt .*computes attention itself"),
        (
            "gemma2",
            {},
            ["algorithm.kl.coef=0.1", "reference.packing=packed"],
            r"reference\.packing=packed is not possible .*softcap",
        ),
        ("mamba2", {}, ["algorithm=ppo", "critic.packing=packed"], r"critic\.packing=packed .*carries state"),
        (
            "falcon",
            {"hidden_dropout": 0.1},
            ["learner.gradient_checkpointing=true"],
            r"learner\.gradient_checkpointing=true is not possible .*dropout",
        ),
        ("jetmoe", {}, ["learner.gradient_checkpointing=true"], r"does not support gradient checkpointing"),
        ("phimoe", {"rope_parameters": PHIMOE}, [], r"longrope, which changes beyond 4096 tokens.* has 5000 tokens"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0}}, [], r"rope_type=dynamic.* 2048 tokens"),
        ("cpmant", {}, [], r"CpmAntForCausalLM cannot be trained: rows give other logits in a padded batch"),
    ],
)
def test_refused(tmp_path: Path, family: str, settings: dict[str, Any], overrides: list[str], message: str) -> None:
    AutoConfig.for_model(family, **settings).save_pretrained(tmp_path)
    with pytest.raises(ConfigError, match=message):
        check_model(load_config(overrides), str(tmp_path), 5000)


@pytest.mark.parametrize("family", ["qwen2", "gemma2", "granite", "cohere", "gptj", "qwen3_moe", "mistral"])
def test_accepted(tmp_path: Path, family: str) -> None:
    AutoConfig.for_model(family).save_pretrained(tmp_path)
    check_model(load_config(["learner.gradient_checkpointing=true"]), str(tmp_path), 5000)


def test_what_training_leaves_out_is_named(tmp_path: Path) -> None:
    AutoConfig.for_model("mixtral", attention_dropout=0.1).save_pretrained(tmp_path)
    assert unused_settings(str(tmp_path), trust_remote_code=False) == [
        "attention_dropout 0.1 (trained without dropout)",
    ]
    AutoConfig.for_model("qwen2", output_router_logits=True).save_pretrained(tmp_path)
    assert unused_settings(str(tmp_path), trust_remote_code=False) == [
        "output_router_logits True (transformers has no auxiliary loss for this architecture)"
    ]
    AutoConfig.for_model("mixtral", output_router_logits=True).save_pretrained(tmp_path)  # it is added
    assert unused_settings(str(tmp_path), trust_remote_code=False) == []
