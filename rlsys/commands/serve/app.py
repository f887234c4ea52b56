"""The HTTP service: one reward function, called in processes that are killed at their deadline."""

from __future__ import annotations

import queue
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fastapi import FastAPI, HTTPException
from pydantic import BaseModel

from rlsys.commands.serve.connections import HEALTH, Door
from rlsys.errors import WorkerError
from rlsys.scoring.call import RewardRequest
from rlsys.scoring.process import RewardProcess
from rlsys.types import RewardPart

MAX_ROWS = 10_000
# How a request's deadline is divided: waiting for a free process, and the call; its retries may take as long again.
WAIT, CALL = 1 / 4, 3 / 8


class ScoreRequest(BaseModel):
    """The rows of a request, as parallel lists with one entry per completion."""

    prompts: list[Any]
    completions: list[Any]
    completion_ids: list[list[int]] = []
    columns: dict[str, list[Any]] = {}
    step: int = 0


class Processes:
    """A reward function in several processes; each request has one to itself."""

    def __init__(self, spec: dict[str, Any], count: int, deadline_s: float, *, whole_groups: bool = False) -> None:
        """Start the processes.

        Args:
            spec: the function, as an entry of `rewards`.
            count: how many processes.
            deadline_s: seconds per request, with waiting and retries.
            whole_groups: whether the function must see a prompt's completions together.
        """
        self._free: queue.SimpleQueue[RewardProcess] = queue.SimpleQueue()
        self._all = [
            RewardProcess(
                spec, call_deadline_s=CALL * deadline_s, row_deadline_s=CALL * deadline_s / 4, whole_groups=whole_groups
            )
            for _ in range(count)
        ]
        for process in self._all:
            process.start()
            self._free.put(process)

    @contextmanager
    def one(self, wait_s: float) -> Iterator[RewardProcess]:
        """Reserve a process for one call. Raises queue.Empty if all are busy for `wait_s`."""
        process = self._free.get(timeout=wait_s)
        try:
            yield process
        finally:
            self._free.put(process)

    def close(self) -> None:
        """Kill every process."""
        for process in self._all:
            process.close()


def build_app(processes: Processes, token: str | None, deadline_s: float) -> FastAPI:
    """Return the service: `POST /score`, which requires the bearer token if there is one, and `GET /health`."""
    wait_s = WAIT * deadline_s  # then the client gets 503, and has time to try again
    app = FastAPI(title="rlsys reward service", docs_url=None, redoc_url=None, openapi_url=None)

    app.add_middleware(Door, token=token)

    @app.get(HEALTH)
    async def health() -> dict[str, str]:  # async: answered even if every thread waits for scores
        return {"status": "ok"}

    @app.post("/score")
    def score(request: ScoreRequest) -> dict[str, Any]:
        """Return one entry per completion, and the means of what the function logged."""
        call = _checked(request)
        try:
            with processes.one(wait_s) as process:
                parts, log = process.score(call)
        except queue.Empty:
            raise HTTPException(503, f"every process was busy for {wait_s:g} s") from None
        except WorkerError as error:  # the function is wrong, and would be so again: not a status that is retried
            raise HTTPException(422, str(error)) from error
        metrics = {name: sum(values) / len(values) for name, values in log.metrics.items()}
        return {"rewards": [_entry(part) for part in parts], "metrics": metrics, "extra": log.extra}

    return app


def _checked(request: ScoreRequest) -> RewardRequest:
    size = len(request.completions)
    ids = request.completion_ids or [[] for _ in range(size)]
    lengths = {"prompts": len(request.prompts), "completion_ids": len(ids)}
    lengths |= {f"columns.{name}": len(column) for name, column in request.columns.items()}
    for name, length in lengths.items():
        if length != size:
            raise HTTPException(422, f"{name} has {length} entries, completions has {size}")
    if not 0 < size <= MAX_ROWS:
        raise HTTPException(422, f"{size} completions: a request must have 1 to {MAX_ROWS}")
    return RewardRequest(request.prompts, request.completions, ids, request.columns, request.step)


def _entry(part: RewardPart) -> dict[str, Any]:
    outcome = "error" if part.outcome == "not_finite" else part.outcome
    return {"value": part.value, "outcome": outcome, "detail": part.detail}
