"""Families of models, each on a small copy: right in the layout that the trial chose, or refused by name."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM

from rlsys.config.build_schema import ModelBuild
from rlsys.errors import ConfigError
from rlsys.models import trial
from rlsys.models.kernels.logits import LogitTransform
from rlsys.models.packing import TokenRow, token_batch
from rlsys.models.policy import PolicyModel
from rlsys.models.small_copy import small_copy
from rlsys.models.tiny import build_model
from rlsys.models.trial import traits_of, try_model
from tests.unit.conftest import TINY

PLAIN = LogitTransform()
CARRIES = "carries state"
WINDOW = "does not support sliding_window"
ALONE = "it computes attention itself"
HEADS = "same head"  # keys and values of unlike width
LFM2 = {"layer_types": ["conv", "full_attention"] * 4, "num_hidden_layers": 8}
GRANITE = {"logits_scaling": 8.0, "attention_multiplier": 0.0078125, "residual_multiplier": 0.22}
# Family, what its configuration sets beside the defaults, why it is not packed, what it does to logits.
FAMILIES: list[tuple[str, dict[str, Any], str | None, LogitTransform]] = [
    ("qwen2", {}, None, PLAIN),
    ("qwen3_moe", {}, None, PLAIN),
    ("mixtral", {}, None, PLAIN),
    ("olmoe", {}, None, PLAIN),
    ("phimoe", {}, None, PLAIN),
    ("opt", {"dropout": 0.1, "attention_dropout": 0.1, "layerdrop": 0.1}, None, PLAIN),
    ("gpt2", {}, None, PLAIN),
    ("phi3", {"attention_dropout": 0.1, "sliding_window": None}, None, PLAIN),
    ("granite", GRANITE, None, LogitTransform(1 / 8)),
    ("cohere", {}, None, LogitTransform(0.0625)),
    ("hyperclovax", {"logits_scaling": 0.3}, None, LogitTransform(0.3)),
    ("nanochat", {}, None, LogitTransform(1.0, 15.0)),
    ("gemma2", {}, WINDOW, LogitTransform(1.0, 30.0)),
    ("gemma3", {}, WINDOW, PLAIN),
    ("gemma3_text", {"final_logit_softcapping": 20.0}, WINDOW, LogitTransform(1.0, 20.0)),
    ("mistral", {}, WINDOW, PLAIN),
    ("cohere2", {}, WINDOW, LogitTransform(0.0625)),
    ("gpt_oss", {}, WINDOW, PLAIN),
    ("recurrent_gemma", {}, WINDOW, LogitTransform(1.0, 30.0)),
    ("deepseek_v3", {}, HEADS, PLAIN),
    ("minicpm3", {}, HEADS, LogitTransform(6 / 64)),
    ("gptj", {}, ALONE, PLAIN),
    ("gpt_neo", {}, ALONE, PLAIN),
    ("stablelm", {}, "dropout, batches or unpacked", PLAIN),
    ("lfm2", LFM2, CARRIES, PLAIN),
    ("mamba2", {}, CARRIES, PLAIN),
    ("falcon_h1", {"lm_head_multiplier": 0.0195}, CARRIES, LogitTransform(0.0195)),
    ("llama4_text", {}, CARRIES, PLAIN),
]


def copy_of(family: str, **settings: Any) -> Any:
    return small_copy(AutoConfig.for_model(family, **settings), make)


def make(config: Any) -> Any:
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32)


def rows(vocabulary: int) -> list[TokenRow]:
    """Three responses to one prompt, and another trajectory; other tokens and lengths than the trial's."""
    generator = np.random.default_rng(7)
    prompt = generator.integers(1, vocabulary, size=6)
    made = []
    for length in (5, 8, 2):
        ids = np.concatenate([prompt, generator.integers(1, vocabulary, size=length)])
        made.append(TokenRow(ids, np.arange(len(ids)) >= len(prompt), 0))
    return [*made, TokenRow(generator.integers(1, vocabulary, size=10), np.arange(10) >= 1, 1)]


@pytest.mark.parametrize(("family", "settings", "obstacle", "logits"), FAMILIES, ids=[f[0] for f in FAMILIES])
def test_families(family: str, settings: dict[str, Any], obstacle: str | None, logits: LogitTransform) -> None:
    """The log-probabilities are those of transformers' own forward over single rows, with its own attention."""
    hf = copy_of(family, **settings)
    own = copy.deepcopy(hf)
    model = PolicyModel(hf)
    assert model.traits.logits == logits
    assert model.layout == ("shared_prompt" if obstacle is None else "padded")
    assert (obstacle or "None") in str(model.traits.packing)
    chosen = rows(hf.get_input_embeddings().weight.shape[0])
    own.set_attn_implementation("eager")
    with torch.no_grad():
        logprobs, _ = model(token_batch(chosen, model.layout), 0.7)
        for number, row in enumerate(chosen):
            ids = torch.from_numpy(row.token_ids)
            full = torch.log_softmax(own(input_ids=ids[None], use_cache=False).logits[0].float() / 0.7, dim=-1)
            expected = full[:-1].gather(1, ids[1:, None])[:, 0]
            found = logprobs[number, 1 : len(ids)]
            mask = torch.from_numpy(row.loss_mask[1:])
            assert torch.allclose(found[mask], expected[mask], atol=2e-4, rtol=1e-4)


@torch.no_grad()
def test_margins() -> None:
    """Rounding is far below the bound, and what is really computed otherwise is far above it."""
    own = []
    for family in ("qwen2", "qwen3_moe", "mistral"):
        hf = copy_of(family)
        hf.set_attn_implementation("eager")
        found = trial._Trial.of(hf)
        hf.set_attn_implementation("sdpa")
        own.append(found.difference("padded"))
    assert max(own) < trial.TOLERANCE / 50
    gemma = copy_of("gemma2")
    gemma.set_attn_implementation("eager")
    found = trial._Trial.of(gemma)
    gemma.set_attn_implementation("sdpa")  # leaves out the soft cap of scores
    assert found.difference("padded") > 50 * trial.TOLERANCE


def test_factors_made_of_widths_are_those_of_the_large_model() -> None:
    config = AutoConfig.for_model("minicpm3")
    found = trial.traits_from_config(config, make)
    assert found is not None
    assert found.logits == LogitTransform(config.dim_model_base / config.hidden_size)


def tiny(tokenizer: Any) -> Any:
    hf = build_model(ModelBuild(**TINY), tokenizer, seed=1).eval()
    with torch.no_grad():
        for parameter in hf.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)  # fresh weights are near zero
    return hf


def test_a_model_that_leaks_between_trajectories_is_not_packed(tokenizer: Any) -> None:
    """A convolution over the row, as hybrid models have."""
    hf = tiny(tokenizer)
    assert try_model(hf).packing is None
    hf = tiny(tokenizer)
    hf.model.layers[0].register_forward_hook(lambda _, __, out: out + nn.functional.pad(out[:, :-1], (0, 0, 1, 0)))
    assert "carries state" in str(try_model(hf).packing)


def test_logits_that_are_neither_scaled_nor_capped_are_refused(tokenizer: Any) -> None:
    hf = tiny(tokenizer)
    hf.lm_head.register_forward_hook(lambda module, inputs, out: out if out.dim() == 2 else out.abs())
    with pytest.raises(ConfigError, match="Qwen2ForCausalLM cannot be trained: its logits are not those of its output"):
        try_model(hf)


def test_noise_in_train_mode_is_refused_for_checkpointing_only() -> None:
    traits = try_model(copy_of("falcon", hidden_dropout=0.1))
    assert "set rates of dropout in config.json to 0" in str(traits.checkpointing)
    assert try_model(copy_of("falcon")).checkpointing is None


def test_a_model_without_a_small_copy_is_tried_itself(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: Any) -> Any:
        raise AttributeError("no attribute 'num_hidden_layers'")

    monkeypatch.setattr(trial, "small_copy", fail)
    monkeypatch.setattr(trial, "_found", {})
    hf = tiny(tokenizer).bfloat16()
    before = {name: value.clone() for name, value in hf.state_dict().items()}
    model = PolicyModel(hf)
    # A window may be longer than the rows of the trial, so it stays unpacked.
    assert (model.layout, model.traits.checkpointing, hf.training) == ("padded", None, False)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in hf.modules())
    after = hf.state_dict()
    assert all(torch.equal(before[name], after[name]) and after[name].dtype == torch.bfloat16 for name in before)
    with pytest.raises(ConfigError, match="packing=packed is not possible with this model: it has no small copy"):
        PolicyModel(tiny(tokenizer), "packed")


def test_a_divided_model_without_a_small_copy_is_refused(tokenizer: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "traits_from_config", lambda *_: None)
    hf = tiny(tokenizer)
    hf.lm_head.weight.ds_id = 0  # as ZeRO-3 marks a parameter
    with pytest.raises(ConfigError, match="set zero_stage to 2 or less"):
        traits_of(hf)


def test_the_trial_leaves_no_trace(tokenizer: Any) -> None:
    hf = tiny(tokenizer)
    config, state = hf.config.to_json_string(), torch.random.get_rng_state()
    traits_of(hf)
    assert hf.config.to_json_string() == config
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(getattr(module, "gradient_checkpointing", False) for module in hf.modules())
