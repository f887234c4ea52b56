"""The game of the environment `guess_number`: its secrets, and games played at random to learn its form from."""

from __future__ import annotations

import numpy as np

from rlsys.data import Row, register
from rlsys.errors import ConfigError
from rlsys.types import Messages

QUESTION = "guess"


@register("guess_number")
def guess_number(split: str, *, limit: int = 7, max_guesses: int = 3, num_shown: int = 4000) -> list[Row]:
    """Return every secret from 1 to `limit` as the splits train and test, or `num_shown` guesses as the split `shown`.

    Of the guesses that are shown every other one is any number, and the others are possible by the answers before them,
    of which there are up to `max_guesses - 1`.
    """
    if split in ("train", "test"):
        return [{"prompt": QUESTION, "secret": secret} for secret in range(1, limit + 1)]
    if split != "shown":
        raise ConfigError(f"data source 'guess_number' has no split '{split}': it has train, test and shown")
    generator = np.random.default_rng(0)
    rows: list[Row] = []
    for number in range(num_shown):
        secret, *guesses = (int(drawn) for drawn in generator.integers(1, limit + 1, size=max_guesses + 1))
        low, high = 1, limit
        messages: Messages = [{"role": "user", "content": QUESTION}]
        for guess in guesses[: number % max_guesses]:
            if guess != secret:  # else the game would be over
                answer = "higher" if secret > guess else "lower"
                low, high = (max(low, guess + 1), high) if secret > guess else (low, min(high, guess - 1))
                messages += [{"role": "assistant", "content": str(guess)}, {"role": "user", "content": answer}]
        possible = int(generator.integers(low, high + 1))
        rows.append({"prompt": messages, "answer": str(possible if generator.random() < 0.5 else guesses[-1])})
    return rows
