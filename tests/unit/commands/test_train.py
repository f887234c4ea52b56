"""What `rlsys train` leaves in a run's folder when the start fails."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from rlsys.commands import train
from rlsys.config.compose import load_config
from rlsys.data.order import EpochOrder
from rlsys.errors import RlsysError
from rlsys.preflight.prepared import Prepared
from rlsys.run_folder.folder import RunFolder


def prepared(model: Path, *overrides: str) -> Prepared:
    return Prepared(load_config(list(overrides)), str(model), 64, [], EpochOrder(1, [0], shuffle=False), [], ())


def test_a_resume_that_fails_leaves_the_description_as_it_was(
    tmp_path: Path, model_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    @contextlib.asynccontextmanager
    async def fails(*_: Any) -> AsyncIterator[None]:
        raise RlsysError("no memory for the optimizer")
        yield

    @contextlib.asynccontextmanager
    async def starts(*_: Any) -> AsyncIterator[Any]:
        yield Opened()

    class Opened:
        async def supervise(self, training: Any) -> None:
            training.close()

    for start, lr, left in ((fails, 1e-3, 1e-3), (fails, 1e-4, 1e-3), (starts, 1e-5, 1e-5)):
        monkeypatch.setattr("rlsys.train.open_run", start)
        with pytest.raises(RlsysError) if start is fails else contextlib.nullcontext():
            train._train(prepared(model_folder, f"learner.lr={lr}"), tmp_path, f"lr {lr}", None)
        assert RunFolder(tmp_path).config().learner.lr == left
        assert (tmp_path / "start.txt").read_text() == f"lr {left}"
