"""Decoding of responses in scoring workers without transformers, whose import takes 3 s and 250 MB in every worker.

Nearly every tokenizer is a `tokenizers.Tokenizer` with settings around it. The driver, which has loaded all, tries
whether that part alone gives the same text, and then sends only that part.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rlsys.data.chat import special_tokens

Decode = Callable[[Sequence[list[int]]], list[str]]
# Ids that are tried, and how many at once: letters, punctuation, spaces and parts of words are among the first of every
# vocabulary; what was added to it comes last.
TRIED, ROW = 4096, 32


@dataclass(frozen=True)
class Decoder:
    """What a scoring worker needs of the policy's tokenizer."""

    model_path: str  # where the whole tokenizer is
    trust_remote_code: bool
    special: dict[int, str]  # special tokens
    structural: frozenset[str]  # those that begin, end and pad a text
    backend: str | None  # JSON of a `tokenizers.Tokenizer` that decodes alike; None: only the whole one does

    def load(self) -> Decode:
        """Return the function that decodes responses, with their special tokens."""
        if self.backend is None:
            from rlsys.models.resolve import load_tokenizer

            tokenizer = load_tokenizer(self.model_path, trust_remote_code=self.trust_remote_code)
            return _whole(tokenizer)
        from tokenizers import Tokenizer

        return _part(Tokenizer.from_str(self.backend))


def decoder_of(tokenizer: Any, model_path: str, *, trust_remote_code: bool = False) -> Decoder:
    """Return what scoring workers need of a tokenizer that `load_tokenizer` returned."""
    part = getattr(tokenizer, "backend_tokenizer", None)
    ids = [*range(min(TRIED, len(tokenizer))), *range(max(TRIED, len(tokenizer) - TRIED), len(tokenizer))]
    rows = [ids[start : start + ROW] for start in range(0, len(ids), ROW)]
    is_alike = part is not None and _part(part)(rows) == _whole(tokenizer)(rows)
    structural = (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token, tokenizer.unk_token)
    return Decoder(
        model_path=model_path,
        trust_remote_code=trust_remote_code,
        special=special_tokens(tokenizer),
        structural=frozenset(token for token in structural if token is not None),
        backend=part.to_str() if part is not None and is_alike else None,
    )


def _whole(tokenizer: Any) -> Decode:
    return lambda rows: list(tokenizer.batch_decode(list(rows), skip_special_tokens=False))


def _part(tokenizer: Any) -> Decode:
    return lambda rows: list(tokenizer.decode_batch(list(rows), skip_special_tokens=False))
