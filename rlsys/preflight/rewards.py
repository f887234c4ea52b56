"""Checks that a reward entry's function can be called with the data set's columns."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from rlsys import rewards
from rlsys.errors import ConfigError
from rlsys.registry import free_parameters, option_names
from rlsys.rewards.entry import function_options, is_class

PROVIDED = ("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "deadline_s")


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
    if is_class(spec):
        function = _call_of(spec)
    parameters = free_parameters(function)
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
    function = rewards.registry.bind(name, function_options(spec))
    if ":" in name and not is_class(spec):
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
