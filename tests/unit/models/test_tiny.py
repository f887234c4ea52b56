"""Policies built on the spot."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from rlsys.config.build_schema import ModelBuild, TokenizerBuild
from rlsys.config.option import options
from rlsys.errors import ConfigError
from rlsys.models.tiny import ARCHITECTURES, SPECIAL_TOKENS, build_model, build_tokenizer, check_build, save_model
from tests.unit.conftest import TINY

PRINTABLE = string.digits + string.ascii_letters + string.punctuation + " \n"


@pytest.fixture(scope="module")
def bpe() -> Any:
    corpus = ["the quick brown fox jumps over the lazy dog"] * 5
    return build_tokenizer(TokenizerBuild(kind="bpe", vocab_size=300), corpus)


def make_model(tokenizer: Any, seed: int = 0, **changes: Any) -> Any:
    return build_model(ModelBuild(**{**TINY, **changes}), tokenizer, seed)


@given(st.text(PRINTABLE, max_size=30))
def test_characters_survive_the_round_trip(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    if "<" not in text:  # which may open the name of a special token
        assert len(ids) == len(text)


@given(st.text(max_size=30))
def test_any_text_survives_the_round_trip_through_bpe(bpe: Any, text: str) -> None:
    assert bpe.decode(bpe(text)["input_ids"]) == text


def test_bpe_learns_its_corpus(bpe: Any) -> None:
    assert len(SPECIAL_TOKENS) + 256 < len(bpe) <= 300
    assert len(bpe("the fox")["input_ids"]) < len("the fox")


def test_an_alphabet_of_ones_own() -> None:
    tokenizer = build_tokenizer(TokenizerBuild(alphabet="0123456789+=0"))  # a repeated character counts once
    assert len(tokenizer) == len(SPECIAL_TOKENS) + 12
    assert tokenizer.decode(tokenizer("37+58=95")["input_ids"]) == "37+58=95"


def test_every_ascii_character_may_be_in_an_alphabet() -> None:
    every = "".join(map(chr, range(128)))
    tokenizer = build_tokenizer(TokenizerBuild(alphabet=every))
    ids = tokenizer(every)["input_ids"]
    assert len(ids) == 128
    assert tokenizer.decode(ids) == every


def test_the_special_tokens(tokenizer: Any, bpe: Any) -> None:
    for each in (tokenizer, bpe):
        assert (each.pad_token, each.eos_token, each.bos_token) == ("<pad>", "<end>", None)
        assert [len(each(token)["input_ids"]) for token in SPECIAL_TOKENS] == [1] * 5
        assert each.decode(each("7<end><pad>")["input_ids"], skip_special_tokens=True) == "7"


def test_the_chat_template(tokenizer: Any) -> None:
    messages = [{"role": "system", "content": "Add."}, {"role": "user", "content": "1+1"}]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == "<system>Add.<end><user>1+1<end><assistant>"
    answered = [*messages, {"role": "assistant", "content": "2"}]
    assert tokenizer.apply_chat_template(answered, tokenize=False) == f"{text}2<end>"  # the prompt is a prefix
    assert len(tokenizer(text)["input_ids"]) == 12  # <system> A d d . <end> <user> 1 + 1 <end> <assistant>


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"hidden_size": 64, "num_heads": 4}, ["16", "32", "raise hidden_size", "num_heads"]),
        ({"hidden_size": 66, "num_heads": 4}, ["multiple", "66, 4"]),
        ({"num_heads": 2, "num_kv_heads": 3}, ["multiple", "num_kv_heads"]),
    ],
)
def test_impossible_shapes_are_refused(changes: dict[str, Any], named: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        check_build(ModelBuild(**{**TINY, **changes}))
    assert all(part in str(caught.value) for part in named)


def test_the_option_names_every_architecture_that_can_be_built() -> None:
    (option,) = (option for option in options(ModelBuild()) if option.key == "architecture")
    assert sorted(option.rule.choices) == sorted(ARCHITECTURES)


def test_the_seed_decides_the_weights_and_leaves_the_generator_alone(tokenizer: Any) -> None:
    before = torch.get_rng_state()
    first, again, other = make_model(tokenizer), make_model(tokenizer), make_model(tokenizer, seed=1)
    assert torch.equal(torch.get_rng_state(), before)
    weights = [model.get_input_embeddings().weight for model in (first, again, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
@pytest.mark.parametrize("tied", [True, False], ids=["tied", "untied"])
def test_a_model_saved_and_loaded_again_is_the_same(
    tmp_path: Path, tokenizer: Any, architecture: str, tied: bool
) -> None:
    from transformers import AutoModelForCausalLM

    model = make_model(tokenizer, architecture=architecture, tie_word_embeddings=tied).eval()
    save_model(model, tokenizer, tmp_path / "saved")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "saved").eval()
    assert type(loaded) is type(model)
    ids = torch.tensor([tokenizer("37+58=95")["input_ids"]])
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, model(ids).logits)
    shared = loaded.get_input_embeddings().weight.data_ptr() == loaded.get_output_embeddings().weight.data_ptr()
    assert shared == tied


@pytest.mark.parametrize("kind", ["chars", "bpe"])
@pytest.mark.parametrize("architecture", ["qwen2", "qwen3", "llama"])
def test_a_tokenizer_saved_and_loaded_again_is_the_same(
    tmp_path: Path, tokenizer: Any, bpe: Any, architecture: str, kind: str
) -> None:
    from transformers import AutoTokenizer

    saved = {"chars": tokenizer, "bpe": bpe}[kind]
    save_model(make_model(saved, architecture=architecture), saved, tmp_path / "saved")
    again = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in ("37+58=95", "the fox, don't", "a  b\n\n c <end>", "<user>1 + 1<end><assistant>"):
        ids = saved(text)["input_ids"]
        assert again(text)["input_ids"] == ids
        assert again.decode(ids) == text
    assert len(again) == len(saved)  # every id has a row in the embedding
    assert again.chat_template == saved.chat_template
    assert (again.pad_token, again.eos_token) == ("<pad>", "<end>")
