"""An environment whose episodes end with the policy's first message."""

from __future__ import annotations

from typing import Any

from rlsys.environments import Opening, Turn


class OneTurn:
    """Gives a reward for any message."""

    async def start(self, **_: Any) -> Opening:
        """Begin with the row's prompt."""
        return Opening()

    async def step(self, message: dict[str, Any]) -> Turn:
        """End."""
        return Turn(reward=1.0, done=True)
