"""The text of single tokens, such that the pieces joined are the response (but for bytes that are no character)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"
"""What decoding gives for bytes that are no whole character."""
MAX_SHARED = 16
"""Tokens in a row that end within characters, looked at together. Most characters are whole after two to four."""
ANCHORS_TRIED = 2000


class Pieces:
    """Decodes ids one by one, behind a token that stands still.

    The token in front keeps what a tokenizer does at the start of a text, such as dropping a space, out of the pieces.
    """

    def __init__(self, tokenizer: Any) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        self._anchor = self._find_anchor()

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """A piece for every id; of tokens that share a character the last shows it, and the others are empty."""
        pieces = [self._piece(token) for token in ids]
        start = 0
        while start < len(pieces):
            window = ids[start : start + MAX_SHARED] if UNFINISHED in pieces[start] else ()
            length = next((n for n in range(2, len(window) + 1) if UNFINISHED not in self._decode(window[:n])), 1)
            if length > 1:
                pieces[start : start + length] = [*[""] * (length - 1), self._decode(ids[start : start + length])]
            start += length
        return pieces

    def _piece(self, token: int) -> str:
        if token not in self._known:
            self._known[token] = self._decode([token])
        return self._known[token]

    def _decode(self, ids: Sequence[int]) -> str:
        front = self._plain(self._anchor)
        text = self._plain([*self._anchor, *ids])
        return text.removeprefix(front) if text.startswith(front) else self._plain(ids)

    def _plain(self, ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if ids
            else ""
        )

    def _find_anchor(self) -> list[int]:
        """The first token that is a letter or digit wherever it stands; none where no token is."""
        for token in range(min(len(self._tokenizer), ANCHORS_TRIED)):
            text = self._plain([token])
            if len(text) == 1 and text.isascii() and text.isalnum() and self._plain([token, token]) == text * 2:
                return [token]
        return []
