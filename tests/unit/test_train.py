"""What a run is started again with."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Coroutine
from dataclasses import dataclass, replace
from types import SimpleNamespace
from typing import Any

import pytest

from rlsys import train as module
from rlsys.config.compose import load_config
from rlsys.config.schema import Config
from rlsys.errors import WorkerDiedError
from rlsys.train import train_to_the_end


@dataclass(frozen=True)
class Prepared:
    config: Config


class Run:
    """Ends by the death of a rank as long as there are `deaths` left, after somebody asked for three engines."""

    def __init__(self, config: Config, deaths: list[None]) -> None:
        wanted = replace(config, rollout=replace(config.rollout, num_workers=3)) if deaths else config
        self.scaling = SimpleNamespace(config=wanted)
        self._deaths = deaths

    async def supervise(self, training: Coroutine[Any, Any, None]) -> None:
        training.close()
        if self._deaths:
            self._deaths.pop()
            raise WorkerDiedError("learner/0 is gone", "learner/0")


def test_a_run_is_started_again_with_the_engines_that_were_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Config] = []
    deaths = [None]

    @contextlib.asynccontextmanager
    async def open_run(prepared: Prepared, *_: object) -> AsyncIterator[Run]:
        opened.append(prepared.config)
        yield Run(prepared.config, deaths)

    monkeypatch.setattr(module, "open_run", open_run)
    asyncio.run(train_to_the_end(Prepared(load_config([])), None, None, None))
    assert [(config.rollout.num_workers, config.resume) for config in opened] == [(1, "never"), (3, "auto")]
