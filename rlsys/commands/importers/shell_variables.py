"""The variables of a shell script while it is read, and what cannot be known of them without running it."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

MARK = "\0"  # stands around the number of a part that cannot be known


class Unread(str):
    """A word as the script has it, of which a part is not known; `reason` says why, and in which line."""

    reason: str

    def __new__(cls, text: str, reason: str) -> Unread:
        """Return the word with its reason."""
        word = super().__new__(cls, text)
        word.reason = reason
        return word


@dataclass
class Variables:
    """Values of variables as words: an array has several. Unknown parts are marked, so they may be parts of words."""

    values: dict[str, list[str]] = field(default_factory=dict)
    _unknown: list[Unread] = field(default_factory=list)

    def look_up(self, name: str) -> list[str] | None:
        """Return the words of a variable of the script, else of the environment, None where neither has it."""
        return self.values.get(name, [os.environ[name]] if name in os.environ else None)

    def unknown(self, text: str, reason: str) -> str:
        """Return the mark of a part that is not known: its text in the script, and why."""
        self._unknown.append(Unread(text, reason))
        return f"{MARK}{len(self._unknown) - 1}{MARK}"

    def finished(self, word: str) -> str:
        """Return a word as it is used: an Unread one where a part of it is not known."""
        parts = word.split(MARK)
        numbers = [int(number) for number in parts[1::2]]
        for position, number in enumerate(numbers):
            parts[2 * position + 1] = self._unknown[number]
        text = "".join(parts)
        return Unread(text, self._unknown[numbers[0]].reason) if numbers else text

    def branch(self, branches: Sequence[Callable[[], None]], where: str, *, is_one_taken: bool) -> None:
        """Read branches, of which at most one is taken. A variable that they leave different is unknown after them."""
        before = self.values
        outcomes = [] if is_one_taken else [before]
        for read in branches:
            self.values = dict(before)
            read()
            outcomes.append(self.values)
        self.values = dict(before)
        for name in {name for outcome in outcomes for name in outcome}:
            found = [outcome.get(name) for outcome in outcomes]
            if all(words == found[0] for words in found) and found[0] is not None:
                self.values[name] = found[0]
            else:
                self.values[name] = [self.unknown(f"${name}", f"{where} decides ${name}")]
