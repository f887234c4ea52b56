"""A game of several turns: find a secret number by guesses that are answered with `higher` or `lower`."""

from __future__ import annotations

import re
from typing import Any

from rlsys.environments import Opening, ParseError, Turn, register


@register("guess_number")
class GuessNumber:
    """The environment thinks of a number from 1 to `limit`; the reward is 1 when it is found within `max_guesses`.

    The number is the row's column `secret`. A message without a number is no guess and ends the game.
    """

    def __init__(self, *, limit: int = 7, max_guesses: int = 3) -> None:
        self._limit, self._left = limit, max_guesses
        self._secret = 0

    async def start(self, *, secret: int, **_: Any) -> Opening:
        """Take the number; raises ValueError for one that is out of bounds."""
        if not 1 <= int(secret) <= self._limit:
            raise ValueError(f"secret={secret} is not from 1 to {self._limit}")
        self._secret = int(secret)
        return Opening()

    async def step(self, message: dict[str, Any]) -> Turn:
        """Compare the first number in the message with the secret."""
        found = re.search(r"\d+", message["content"])
        if found is None:
            raise ParseError("the message has no number")
        guess, self._left = int(found[0]), self._left - 1
        if guess == self._secret:
            return Turn(reward=1.0, done=True)
        if self._left == 0:
            return Turn(reward=0.0, done=True)
        return Turn([{"role": "user", "content": "higher" if self._secret > guess else "lower"}])
