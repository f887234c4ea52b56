"""Environments for tests: one that does as it is told, and some of TRL's form."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from typing import Any

from rlsys.environments import Opening, ParseError, Turn


class Told:
    """Does what the row, then each message, says."""

    def __init__(self, *, greeting: str = "") -> None:
        self._greeting = greeting

    async def start(self, *, do: str = "", **_: Any) -> Opening:
        """Begin."""
        self._act(do)
        return Opening([{"role": "user", "content": self._greeting}] if self._greeting else None)

    def step(self, message: dict[str, Any]) -> Turn:
        """Act."""
        self._act(message["content"])
        if message["content"].startswith("end"):
            return Turn(reward=float(message["content"].removeprefix("end") or 1), done=True, metrics={"ends": 1})
        return Turn([{"role": "user", "content": f"you said {message['content']}"}], reward=0.25, metrics={"said": 1})

    def _act(self, do: str) -> None:
        if do == "raise":
            raise ValueError("as told")
        if do == "unreadable":
            raise ParseError("no word of it")
        if do == "hang":
            time.sleep(600)
        if do == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        if do == "spawn":
            subprocess.Popen(["sleep", "600"])
        if do == "print":
            print("printed by an environment")


class Silent(Told):
    """Answers nothing, and does not end."""

    def step(self, message: dict[str, Any]) -> Turn:
        """Say nothing."""
        return Turn()


class NoTurn(Told):
    """Returns something else."""

    def step(self, message: dict[str, Any]) -> Any:
        """Return a mapping."""
        return {"done": True}


class Wordy(Told):
    """Answers at length."""

    def step(self, message: dict[str, Any]) -> Turn:
        """Say much."""
        return Turn([{"role": "user", "content": "word " * 100}])


class TextReward(Told):
    """Gives a reward that is no number."""

    def step(self, message: dict[str, Any]) -> Turn:
        """Return a text."""
        return Turn(reward="much", done=True)  # type: ignore[arg-type]


class OddRole(Told):
    """Answers in a role that templates may refuse."""

    def step(self, message: dict[str, Any]) -> Turn:
        """Answer as nobody."""
        return Turn([{"role": "oracle", "content": "so"}])


class Counter:
    """Counts: TRL's form."""

    def reset(self, *, prompt: Any, begin: int = 0, **_: Any) -> str:
        """Begin."""
        self.value, self._hidden = begin, "x"
        return f" from {begin}"

    def add(self, number: int) -> int:
        """
        Add a number.

        Args:
            number: What to add.

        Returns:
            The sum.
        """
        self.value += number
        return self.value

    async def fail(self) -> str:
        """Fail."""
        raise RuntimeError("as asked")

    def get_reward(self) -> float:
        """Return the sum."""
        return float(self.value)


class Rewardless:
    """TRL's form without a reward."""

    def reset(self, **_: Any) -> None:
        """Begin."""


class Untyped:
    """A tool without types."""

    def reset(self, **_: Any) -> None:
        """Begin."""

    def add(self, number):
        """Add."""


def double(number: int) -> int:
    """
    Double a number.

    Args:
        number: What to double.

    Returns:
        Twice the number.
    """
    return 2 * number


async def blocks(flag: bool = False) -> list[dict[str, str]]:
    """
    Return blocks.

    Args:
        flag: Whether to say so.

    Returns:
        Two of them.
    """
    return [{"type": "text", "text": "a"}, {"type": "text", "text": str(flag)}]


def bare(number):
    return number
