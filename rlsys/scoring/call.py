"""One call of a reward function with TRL's contract."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from rlsys.registry import free_parameters
from rlsys.rewards import Failed
from rlsys.types import Messages


@dataclass(frozen=True)
class RewardRequest:
    """What one call of a reward function sees: parallel lists, one entry a trajectory."""

    prompts: Sequence[str | Messages]
    completions: Sequence[str | list[dict[str, str]]]
    completion_ids: Sequence[list[int]]
    columns: Mapping[str, Sequence[Any]]
    step: int
    deadline_s: float = 30.0  # until the process that scores it is killed
    num_steps: int = 0  # of the whole run
    epoch: float = 0.0

    def __len__(self) -> int:
        return len(self.completions)

    def part(self, start: int, end: int) -> RewardRequest:
        """The request for the trajectories [start, end) alone."""
        chosen = slice(start, end)
        columns = {key: values[chosen] for key, values in self.columns.items()}
        return replace(
            self,
            prompts=self.prompts[chosen],
            completions=self.completions[chosen],
            completion_ids=self.completion_ids[chosen],
            columns=columns,
        )

    def runs_of_prompts(self) -> list[int]:
        """How many trajectories in a row have the same prompt."""
        return [len(list(same)) for _, same in itertools.groupby(self.prompts)]


@dataclass
class RewardLog:
    """What the function logged through `log_metric` and `log_extra`."""

    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def metric(self, name: str, value: float) -> None:
        self.metrics.setdefault(name, []).append(float(value))

    def column(self, column: str, values: list[Any]) -> None:  # TRL's names: functions may give them as keywords
        self.extra.setdefault(column, []).extend(values)

    def plain(self) -> RewardLog:
        """With nothing that only the function's own process knows: its classes, arrays, numbers of other libraries."""
        return RewardLog(self.metrics, json.loads(json.dumps(self.extra, default=str)))

    def merge(self, other: RewardLog) -> None:
        """Add what another call logged."""
        for name, values in other.metrics.items():
            self.metrics.setdefault(name, []).extend(values)
        for name, column in other.extra.items():
            self.column(name, column)


@dataclass(frozen=True)
class TrainerState:
    """The part of TRL's `trainer_state` that reward functions read."""

    global_step: int
    max_steps: int = 0
    epoch: float = 0.0

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"trainer_state has no '{name}' here: it has {', '.join(self.__dataclass_fields__)}")


def call_reward(function: Callable[..., Any], request: RewardRequest, log: RewardLog) -> list[float | Failed | None]:
    """Call `function` with the arguments it accepts; awaits a coroutine. Returns one float (NaN and infinity too: the
    loop counts those), None or Failed a row.

    Raises ValueError when the result has the wrong length, and whatever the function raises.
    """
    arguments: dict[str, Any] = {
        **request.columns,
        "prompts": list(request.prompts),
        "completions": list(request.completions),
        "completion_ids": list(request.completion_ids),
        "trainer_state": TrainerState(request.step, request.num_steps, request.epoch),
        "deadline_s": request.deadline_s,
        "log_extra": log.column,
        "log_metric": log.metric,
    }
    result = function(**_accepted(function, arguments))
    if inspect.isawaitable(result):
        result = _awaited(result)
    scores = [value if value is None or isinstance(value, Failed) else float(value) for value in result]
    if len(scores) != len(request):
        raise ValueError(f"returned {len(scores)} rewards for {len(request)} completions")
    return scores


def _accepted(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(function)
    if "deadline_s" not in signature.parameters:  # not TRL's: for those alone that ask for it by name
        arguments = {name: value for name, value in arguments.items() if name != "deadline_s"}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
        options = getattr(function, "keywords", {})
        return {name: value for name, value in arguments.items() if name not in options}
    return {name: value for name, value in arguments.items() if name in free_parameters(function)}


def _awaited(result: Any) -> Any:
    """What a coroutine gives. Of one that fails no task stays behind, to go on during its retries."""
    runner = _event_loop()
    before = asyncio.all_tasks(runner.get_loop())
    try:
        return runner.run(_await(result))
    except BaseException:
        runner.run(_end(asyncio.all_tasks(runner.get_loop()) - before))
        raise


@cache
def _event_loop() -> asyncio.Runner:
    """One for every call: clients and locks that a function keeps belong to the loop they were made in."""
    return asyncio.Runner()


async def _end(tasks: Iterable[asyncio.Task[Any]]) -> None:
    left = list(tasks)
    for task in left:
        task.cancel()
    await asyncio.gather(*left, return_exceptions=True)


async def _await(result: Any) -> Any:
    return await result
