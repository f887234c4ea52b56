"""The game: bounds, answers, rewards, and messages that are no guess."""

from __future__ import annotations

import asyncio

import pytest

from rlsys.data.guess_number import guess_number
from rlsys.environments import ParseError
from rlsys.environments.guess_number import GuessNumber


def play(secret: int, *guesses: str) -> list[object]:
    game = GuessNumber()
    asyncio.run(game.start(secret=secret))
    turns = [asyncio.run(game.step({"role": "assistant", "content": guess})) for guess in guesses]
    return [turn.messages[0]["content"] if turn.messages else turn.reward for turn in turns]


def test_guesses_are_answered_until_the_number_is_found_or_they_are_used_up() -> None:
    assert play(5, "4", "6", "it is 5") == ["higher", "lower", 1.0]
    assert play(1, "4", "2", "3") == ["lower", "lower", 0.0]
    with pytest.raises(ParseError):
        play(1, "what?")
    with pytest.raises(ValueError, match="not from 1 to 7"):
        play(8)


def test_rows_have_every_secret_and_shown_games_answer_truly() -> None:
    assert [row["secret"] for row in guess_number("train")] == [1, 2, 3, 4, 5, 6, 7]
    shown = guess_number("shown", num_shown=300)
    assert {row["answer"] for row in shown} == set("1234567")
    assert {len(row["prompt"]) for row in shown} == {1, 3, 5}
    for row in shown:
        secrets = [
            secret
            for secret in range(1, 8)
            if all(
                ("higher" if secret > int(guess["content"]) else "lower") == answer["content"]
                for guess, answer in zip(row["prompt"][1::2], row["prompt"][2::2], strict=True)
            )
        ]
        assert secrets, row
