"""The text of single tokens. Joined, the texts are the response, except for bytes that are not a character."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

UNFINISHED = "\ufffd"  # what decoding gives for bytes that are not a whole character
MAX_SHARED = 16  # tokens in a row that may share characters; most characters are complete after two to four
ANCHORS_TRIED = 2000  # tokens that are tried as the anchor


class TokenTexts:
    """A decoder of single token ids, each behind an anchor: a token whose text is known.

    Tokenizers treat the start of a text differently, for example by dropping a space. With the anchor in front no token
    is at the start.
    """

    def __init__(self, tokenizer: Any) -> None:
        """Find an anchor for this tokenizer."""
        self._tokenizer = tokenizer
        self._known: dict[int, str] = {}
        self._anchor = self._find_anchor()

    def __call__(self, ids: Sequence[int]) -> list[str]:
        """Return a text for each id. Of tokens that share a character the last has it, and the others are empty."""
        pieces = [self._piece(token) for token in ids]
        start = 0
        while start < len(pieces):
            # A character of several bytes may be spread over several tokens: find the shortest run that is complete.
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
        # A token may merge with the anchor; then it is decoded alone.
        return text.removeprefix(front) if text.startswith(front) else self._plain(ids)

    def _plain(self, ids: Sequence[int]) -> str:
        return str(
            self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False)
            if ids
            else ""
        )

    def _find_anchor(self) -> list[int]:
        """Return the first token that is the same letter or digit wherever it stands; none if there is none."""
        for token in range(min(len(self._tokenizer), ANCHORS_TRIED)):
            text = self._plain([token])
            if len(text) == 1 and text.isascii() and text.isalnum() and self._plain([token, token]) == text * 2:
                return [token]
        return []
