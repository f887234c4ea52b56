"""Scoring workers decode with a part of the tokenizer only where it gives the same text."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from rlsys.models.resolve import load_tokenizer
from rlsys.scoring.decoder import decoder_of

LOADS_WITHOUT = """
import pickle, sys
decode = pickle.load(open(sys.argv[1], "rb")).load()
print(decode([[6, 7], [8]]), "torch" in sys.modules, "transformers" in sys.modules)
"""


def test_a_worker_decodes_without_transformers(model_folder: Path, tmp_path: Path) -> None:
    import pickle

    tokenizer = load_tokenizer(str(model_folder))
    decoder = decoder_of(tokenizer, str(model_folder))
    assert decoder.backend is not None
    (tmp_path / "decoder").write_bytes(pickle.dumps(decoder))
    command = [sys.executable, "-c", LOADS_WITHOUT, str(tmp_path / "decoder")]
    found = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert found == f"{[tokenizer.decode([6, 7]), tokenizer.decode([8])]} False False"


def word_pieces(folder: Path, *, cleans_up: bool) -> Any:
    """A tokenizer whose settings may change the text after the library has decoded it."""
    pieces = Tokenizer(models.WordPiece({"[UNK]": 0, "so": 1, ".": 2, "##me": 3}, unk_token="[UNK]"))
    pieces.pre_tokenizer = pre_tokenizers.Whitespace()
    pieces.decoder = decoders.WordPiece(cleanup=False)
    made = PreTrainedTokenizerFast(
        tokenizer_object=pieces, unk_token="[UNK]", clean_up_tokenization_spaces=cleans_up, model_max_length=8
    )
    made.save_pretrained(folder)
    return load_tokenizer(str(folder))


@pytest.mark.parametrize(("cleans_up", "text"), [(False, "some ."), (True, "some.")])
def test_what_the_settings_change_is_kept(tmp_path: Path, cleans_up: bool, text: str) -> None:
    decoder = decoder_of(word_pieces(tmp_path, cleans_up=cleans_up), str(tmp_path))
    assert (decoder.backend is None) is cleans_up
    assert decoder.load()([[1, 3, 2]]) == [text]
