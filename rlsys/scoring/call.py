"""Calling one reward function with TRL's contract, and checking that a call can work before anything starts."""

from __future__ import annotations

import asyncio
import inspect
import itertools
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

from rlsys import rewards
from rlsys.errors import ConfigError
from rlsys.registry import absolute_name, option_names
from rlsys.rewards import Failed
from rlsys.types import Messages

RESERVED = ("name", "weight", "deadline_s")
"""Keys of an entry of `rewards` that are not the function's options."""
PROVIDED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "deadline_s")


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


def absolute(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The same entry of `rewards` with files that do not depend on a worker's working directory: a `path.py:function`,
    and the options that the function registered as `paths`."""
    name = str(spec.get("name", ""))
    files = [option for option in rewards.registry.fact(name, "paths", ()) if isinstance(spec.get(option), str)]
    return {**spec, "name": absolute_name(name), **{option: _absolute(spec[option]) for option in files}}


def _absolute(text: str) -> str:
    """Of a file, and of a function in one; any other text as it is."""
    if _is_there(text):
        return str(Path(text).expanduser().resolve())
    return absolute_name(text) if _is_there(text.rpartition(":")[0]) else text


def _is_there(path: str) -> bool:
    try:
        return Path(path).expanduser().exists()
    except OSError:  # too long for a name: a text, not a path
        return False


def deadline_of(spec: Mapping[str, Any], default: float) -> float:
    """Seconds that a call may take: as its entry says, as it was registered with, or `default`."""
    return float(spec.get("deadline_s") or rewards.registry.fact(str(spec["name"]), "deadline_s", default))


def bind_reward(spec: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that one entry of `rewards` names, with its options; of a class an object, made now. Raises
    ConfigError when name or option is unknown, and what making an object raises."""
    bound = rewards.registry.bind(str(spec["name"]), _options(spec))
    made: Callable[..., Any] = bound() if _is_class(spec) else bound
    return made


def _options(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key not in RESERVED}


def _is_class(spec: Mapping[str, Any]) -> bool:
    return inspect.isclass(rewards.registry.get(str(spec["name"])))


def _call_of(spec: Mapping[str, Any]) -> Callable[..., Any]:
    """What an object of a class takes when it is called, `self` first."""
    made: Any = rewards.registry.get(str(spec["name"]))
    call: Callable[..., Any] = made.__call__
    return call


def check_reward(spec: Mapping[str, Any], columns: Iterable[str]) -> None:
    """Raise ConfigError when the function's options do not fit it, or when it needs an argument that neither TRL's
    contract nor the data set provides."""
    columns = set(columns)
    known = {*PROVIDED, *columns}
    function = check_options(spec)
    if _is_class(spec):
        function = _call_of(spec)
    parameters = _parameters(function)
    for name in set(option_names(function)) & columns - set(spec):
        if parameters[name].default is inspect.Parameter.empty:
            continue
        raise ConfigError(
            f"reward '{spec['name']}' has an option '{name}', and the data set a column of that name: set the option "
            "in `rewards`, or rename the column"
        )
    for name, parameter in parameters.items():
        if name == "self":
            continue
        if parameter.default is inspect.Parameter.empty and name not in known:
            raise ConfigError(
                f"reward '{spec['name']}' needs the column '{name}', which the data set does not have; its columns: "
                f"{', '.join(sorted(columns)) or 'none'}"
            )


def check_options(spec: Mapping[str, Any]) -> Callable[..., Any]:
    """The function with its options; raises ConfigError for options that it cannot work with. In outside code a
    keyword-only parameter without a default may be a column, as with TRL."""
    name = str(spec["name"])
    function = rewards.registry.bind(name, _options(spec))
    if ":" in name and not _is_class(spec):
        return function
    parameters = inspect.signature(function).parameters
    settings = {option: parameters[option].default for option in option_names(function)}
    for option, value in settings.items():
        if value is inspect.Parameter.empty:
            raise ConfigError(f"reward '{name}' needs the option '{option}'")
    check = rewards.registry.fact(name, "check", None)
    if check is not None:
        try:
            check(**settings)
        except ValueError as error:
            raise ConfigError(f"reward '{name}': {error}") from error
    return function


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
    return {name: value for name, value in arguments.items() if name in _parameters(function)}


def _parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    options = getattr(function, "keywords", {})
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind in named and name not in options}


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
