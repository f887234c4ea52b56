"""Texts of single tokens, which together are the response."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.commands.report.tokens import TokenTexts
from rlsys.config.build_schema import TokenizerBuild
from rlsys.models.tiny import build_tokenizer


@pytest.fixture(scope="module")
def bytes_tokenizer() -> Any:
    """Byte-level, with few merges: what is not ASCII takes several tokens."""
    return build_tokenizer(TokenizerBuild(kind="bpe", vocab_size=300), ["hello hello world world"])


class WordStart:
    """A tokenizer in sentencepiece's manner: a word's first token carries a space, which a text's start loses."""

    words = ("", "a", "▁two", "▁words", "s")

    def __len__(self) -> int:
        return len(self.words)

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join(self.words[token] for token in ids).replace("▁", " ").removeprefix(" ")


def test_characters(bytes_tokenizer: Any) -> None:
    tokenizer = build_tokenizer(TokenizerBuild(kind="chars", alphabet="0123456789+="))
    ids = tokenizer("12+3=15")["input_ids"]
    assert TokenTexts(tokenizer)([*ids, tokenizer.eos_token_id]) == ["1", "2", "+", "3", "=", "1", "5", "<end>"]


def test_the_last_token_of_a_character_shows_it(bytes_tokenizer: Any) -> None:
    ids = bytes_tokenizer("é!🙂")["input_ids"]
    assert len(ids) == 7  # two bytes, one, four
    assert TokenTexts(bytes_tokenizer)(ids) == ["", "é", "!", "", "", "", "🙂"]


def test_bytes_that_are_no_character(bytes_tokenizer: Any) -> None:
    smile = bytes_tokenizer("🙂")["input_ids"]
    letter = bytes_tokenizer("h")["input_ids"]
    assert TokenTexts(bytes_tokenizer)([smile[0], *letter, *smile]) == ["\ufffd", "h", "", "", "", "🙂"]


def test_a_space_that_a_texts_start_loses_is_kept() -> None:
    assert TokenTexts(WordStart())([2, 3, 4]) == [" two", " words", "s"]


@settings(max_examples=60, deadline=None)
@given(text=st.text(alphabet=st.characters(exclude_categories=["Cs"]), max_size=30))
def test_pieces_joined_are_the_text(bytes_tokenizer: Any, text: str) -> None:
    ids = bytes_tokenizer(text)["input_ids"]
    pieces = TokenTexts(bytes_tokenizer)(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == bytes_tokenizer.decode(ids, clean_up_tokenization_spaces=False)
