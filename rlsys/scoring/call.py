"""One call of a reward function: its request, its reply, and the arguments that TRL's signature gives it."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cache
from types import SimpleNamespace
from typing import Any

from rlsys.registry import free_parameters
from rlsys.rewards import Failed
from rlsys.types import Messages


@dataclass(frozen=True)
class RewardRequest:
    """The rows of one call, as parallel lists with one entry per trajectory."""

    prompts: Sequence[str | Messages]
    completions: Sequence[str | list[dict[str, str]]]
    completion_ids: Sequence[list[int]]
    columns: Mapping[str, Sequence[Any]]
    step: int
    deadline_s: float = 30.0  # seconds until the process that scores it is killed
    num_steps: int = 0  # steps of the whole run
    epoch: float = 0.0
    environments: Sequence[Mapping[str, Any] | None] = ()  # what is seen of each episode's environment, at its end

    def __len__(self) -> int:
        return len(self.completions)

    def part(self, start: int, end: int) -> RewardRequest:
        """Return the request for only the rows [start, end)."""
        chosen = slice(start, end)
        columns = {key: values[chosen] for key, values in self.columns.items()}
        return replace(
            self,
            prompts=self.prompts[chosen],
            completions=self.completions[chosen],
            completion_ids=self.completion_ids[chosen],
            columns=columns,
            environments=self.environments[chosen],
        )

    def runs_of_prompts(self) -> list[int]:
        """Return the sizes of the runs of neighbouring rows with the same prompt: `[a, a, b, a]` gives `[2, 1, 1]`."""
        return [len(list(same)) for _, same in itertools.groupby(self.prompts)]


@dataclass
class RewardLog:
    """Metrics and columns that a function logged through `log_metric` and `log_extra`."""

    metrics: dict[str, list[float]] = field(default_factory=dict)
    extra: dict[str, list[Any]] = field(default_factory=dict)

    def metric(self, name: str, value: float) -> None:
        """Log one value of a metric: `log_metric`."""
        self.metrics.setdefault(name, []).append(float(value))

    def column(self, column: str, values: list[Any]) -> None:
        """Log one value per row: `log_extra`. The parameters have TRL's names, so that they can be given by name."""
        self.extra.setdefault(column, []).extend(values)

    def plain(self) -> RewardLog:
        """Return the log as plain values, without classes and arrays that only the function's process can load."""
        return RewardLog(
            {str(name): values for name, values in self.metrics.items()},
            {str(name): [_plain(value) for value in column] for name, column in self.extra.items()},
        )

    def merge(self, other: RewardLog) -> None:
        """Append what another call logged."""
        for name, values in other.metrics.items():
            self.metrics.setdefault(name, []).extend(values)
        for name, column in other.extra.items():
            self.column(name, column)


@dataclass(frozen=True)
class Reply:
    """The reply of a function's process: the result of loading the function, or of one call."""

    scores: Sequence[float | Failed | None] = ()
    log: RewardLog = field(default_factory=RewardLog)
    error: str | None = None  # the traceback of what was raised, or what is wrong with what was returned
    has_returned: bool = True  # whether the function came to its end: then asking again cannot help


class WrongReturnError(Exception):
    """A function returned something other than one value per completion."""


@dataclass(frozen=True)
class TrainerState:
    """The part of TRL's `trainer_state` that reward functions read."""

    global_step: int
    max_steps: int = 0
    epoch: float = 0.0

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"rlsys's trainer_state has no '{name}'; it has {', '.join(self.__dataclass_fields__)}")


def call_reward(function: Callable[..., Any], request: RewardRequest, log: RewardLog) -> list[float | Failed | None]:
    """Call a reward function with the arguments that it accepts, and wait for the result of a coroutine.

    Args:
        function: the function, with its options filled in.
        request: the rows.
        log: takes what the function logs.

    Returns:
        One score per row: a float, also NaN or infinite, which the loop counts; None; or Failed, also for a value that
        is no number.

    Raises:
        WrongReturnError: the function returned another number of scores than rows, or no list.
        Exception: whatever the function raises.
    """
    # Columns first: rlsys's own arguments win over columns of the same name.
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
    if any(state is not None for state in request.environments):  # as TRL's: not without environments
        arguments["environments"] = [SimpleNamespace(**(state or {})) for state in request.environments]
    result = function(**_accepted(function, arguments))
    if inspect.isawaitable(result):
        result = _awaited(result)
    # The keys of a mapping, or the letters of a text, would be counted as scores. An array of no dimension is a number.
    is_number = not isinstance(result, Iterable) or getattr(result, "ndim", 1) == 0
    if isinstance(result, str | bytes | Mapping | Set) or is_number:
        raise WrongReturnError(f"returned {_short(result)}; it must return a list with one number per completion")
    scores = [_score(value) for value in result]
    if len(scores) != len(request):
        found, wanted = _counted(len(scores), "value"), _counted(len(request), "completion")
        raise WrongReturnError(f"returned {found} for {wanted}; it must return one for each")
    return scores


def _score(value: Any) -> float | Failed | None:
    if value is None or isinstance(value, Failed):
        return value
    try:
        return float(value)
    except (TypeError, ValueError):
        return Failed(f"returned {_short(value)} for this completion; it must be a number or None")


def _counted(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"


def _short(value: Any) -> str:
    return f"{type(value).__name__} {str(value)[:100]!r}"


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value, default=str))
    except (TypeError, ValueError, RecursionError):  # keys that JSON does not know, or a value that contains itself
        return str(value)


def _accepted(function: Callable[..., Any], arguments: dict[str, Any]) -> dict[str, Any]:
    signature = inspect.signature(function)
    if "deadline_s" not in signature.parameters:  # not in TRL: a function with only **kwargs does not expect it
        arguments = {name: value for name, value in arguments.items() if name != "deadline_s"}
    if any(p.kind is inspect.Parameter.VAR_KEYWORD for p in signature.parameters.values()):
        # The options of an entry are filled in by functools.partial. A column of the same name must not replace one.
        options = getattr(function, "keywords", {})
        return {name: value for name, value in arguments.items() if name not in options}
    return {name: value for name, value in arguments.items() if name in free_parameters(function)}


def _awaited(result: Any) -> Any:
    """Return the result of an awaitable. If it fails, its tasks are cancelled: they must not run on during retries."""
    runner = _event_loop()
    before = asyncio.all_tasks(runner.get_loop())
    try:
        return runner.run(_await(result))
    except BaseException:
        runner.run(_cancel(asyncio.all_tasks(runner.get_loop()) - before))
        raise


@cache
def _event_loop() -> asyncio.Runner:
    """Return the event loop of this process: clients and locks that a function keeps belong to one loop."""
    return asyncio.Runner()


async def _cancel(tasks: Collection[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)


async def _await(result: Any) -> Any:
    """Make a coroutine of any awaitable, which the runner insists on."""
    return await result
