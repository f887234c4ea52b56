"""Checks of the reward functions: their entries in `rewards`, their options, and the columns that they read."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from rlsys import rewards
from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.registry import fits, free_parameters, option_names
from rlsys.rewards.entry import RESERVED, deadline_of, function_options, is_class, labels_of, longest_s
from rlsys.rewards.judges import judges_of
from rlsys.types import Prompt

# Values of a column that are looked at, evenly spread: parsing an answer takes about a millisecond.
MAX_VALUES = 5000
# Arguments that every reward function may ask for besides the columns of the data set: TRL's, and `deadline_s`.
PROVIDED = (
    *("prompts", "completions", "completion_ids", "trainer_state", "log_extra", "log_metric", "deadline_s"),
    "environments",
)

logger = logging.getLogger(__name__)


def check_reward_list(config: Config, *, training: bool) -> None:
    """Raise ConfigError for an entry of `rewards` without a name, or with a weight or deadline that is no number."""
    if not config.rewards and not labels_of(config):
        raise ConfigError("rewards is empty: name at least one function, as rewards=[{name: exact_match, weight: 1.0}]")
    for spec in config.rewards:
        if "name" not in spec:
            raise ConfigError(
                f"rewards: the entry {dict(spec)} has no name; known names: {', '.join(rewards.registry.names())}"
            )
        weight = spec.get("weight", 1.0)
        if not fits(weight, float) or not math.isfinite(weight):
            raise ConfigError(f"rewards: the weight of '{spec['name']}' is {weight!r}: it must be a finite number")
        deadline = spec.get("deadline_s", 1.0)
        if not fits(deadline, float) or deadline <= 0:
            raise ConfigError(
                f"rewards: the deadline_s of '{spec['name']}' is {deadline!r}: it must be a number of seconds above 0"
            )
        if training:
            _check_deadline(config, spec)


def accuracy_note(config: Config) -> str:
    """Return what decides accuracy, for a person. Raise ConfigError when `eval.accuracy_from` names no reward."""
    judges, bar = judges_of(config), config.eval.correct_at
    if judges:
        return f"judged by {' and '.join(judges)}, from {bar:g} on (eval.accuracy_from, eval.correct_at)"
    return (
        f"no reward says that it judges answers, so total rewards of at least {bar:g} count "
        "(eval.correct_at); name the reward that does with eval.accuracy_from"
    )


def check_rewards(specs: Sequence[Mapping[str, Any]], prompts: Sequence[Prompt], data: str) -> None:
    """Raise ConfigError for a reward that does not fit the data set called `data`: see `check_reward`."""
    columns = {name for prompt in prompts for name in prompt.columns}
    for spec in specs:
        try:
            check_reward(spec, columns)
            _check_values(spec, prompts, data, is_alone=len(specs) == 1)
        except ConfigError as error:
            raise ConfigError(f"{data}: {error}") from error


def _check_values(spec: Mapping[str, Any], prompts: Sequence[Prompt], data: str, *, is_alone: bool) -> None:
    """Log how many rows of the data set a reward cannot work with. Raise ConfigError if it can work with none.

    Unless it has nothing to work with and other rewards do: rows of another task have an empty answer.
    """
    column, usable = rewards.registry.fact(str(spec["name"]), "usable", (None, None))
    if column is None:
        return
    options = function_options(spec)
    given = [prompt for prompt in prompts if prompt.columns.get(column) is not None]
    looked_at = given[:: math.ceil(len(given) / MAX_VALUES) or 1]
    bad = [prompt for prompt in looked_at if not usable(prompt.columns[column], **options)]
    if not bad:
        return
    found = (
        f"reward '{spec['name']}' cannot work with {len(bad)} of {len(looked_at)} values of the column '{column}', the "
        f"first in row {bad[0].index}: {str(bad[0].columns[column])[:100]!r}"
    )
    if len(bad) == len(looked_at) and (is_alone or any(prompt.columns[column] for prompt in bad)):
        raise ConfigError(f"{found}. Rename the column that it should read with data.columns={{{column}: ...}}")
    logger.warning("%s: %s. It does not apply to these rows", data, found)


def check_reward(spec: Mapping[str, Any], columns: Iterable[str]) -> None:
    """Raise ConfigError for options that do not fit the function, or for an argument that nobody provides.

    A function gets the columns of the data set and the arguments of TRL's contract (`PROVIDED`).
    """
    columns = set(columns)
    function = check_options(spec)
    if is_class(spec):
        function = _call_of(spec)
    parameters = free_parameters(function)
    # Options that the entry leaves at their defaults, and that have the name of a column.
    for name in set(option_names(function)) & columns - set(spec):
        if parameters[name].default is inspect.Parameter.empty:
            continue
        # The column would silently replace the option's default.
        raise ConfigError(
            f"reward '{spec['name']}' has an option '{name}', and the data set has a column of that name: set the "
            "option in `rewards`, or rename the column with data.columns"
        )
    names = rewards.registry.fact(str(spec["name"]), "one_of", ())
    if names and not columns.intersection(names):
        raise ConfigError(
            f"reward '{spec['name']}' needs one of the columns {', '.join(names)}, of which the data set has none; its "
            f"columns: {', '.join(sorted(columns)) or 'none'}. Rename one with data.columns={{{names[0]}: ...}}"
        )
    for name, parameter in parameters.items():
        if name != "self" and parameter.default is inspect.Parameter.empty and name not in {*PROVIDED, *columns}:
            raise ConfigError(
                f"reward '{spec['name']}' needs the column '{name}', which the data set does not have; its columns: "
                f"{', '.join(sorted(columns)) or 'none'}. Rename one with data.columns={{{name}: ...}}"
            )


def check_options(spec: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function of one entry of `rewards` with its options bound; raise ConfigError for impossible options.

    In outside code a keyword-only parameter without a default may be a column, as with TRL, so it need not be set.
    """
    name = str(spec["name"])
    function = rewards.registry.bind(name, function_options(spec), other_keys=RESERVED)
    if ":" in name and not is_class(spec):
        return function  # what looks like an option may be a column: `check_reward` decides, once the data are there
    parameters = inspect.signature(function).parameters
    settings = {option: parameters[option].default for option in option_names(function)}
    for option, value in settings.items():
        if value is inspect.Parameter.empty:
            raise ConfigError(f"reward '{name}' needs the option '{option}': add {option}: ... to its entry")
    check = rewards.registry.fact(name, "check", None)
    if check is not None:
        try:
            check(**settings)
        except ValueError as error:
            raise ConfigError(f"reward '{name}': {error}") from error
    return function


def _call_of(spec: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the `__call__` of a reward's class; its first parameter is `self`."""
    made: Any = rewards.registry.get(str(spec["name"]))
    call: Callable[..., Any] = made.__call__
    return call


def _check_deadline(config: Config, spec: Mapping[str, Any]) -> None:
    """Raise ConfigError unless a function that hangs is killed before its worker counts as lost."""
    scoring = config.scoring
    call, row = (deadline_of(spec, default) for default in (scoring.function_deadline_s, scoring.row_deadline_s))
    needed = longest_s(call, row)
    # Seconds as they are configured, and how often they count.
    waits = {"scoring": (scoring.deadline_s, 1.0), "rollout": (config.rollout.deadline_s, config.deadline_factor)}
    short = {role: wait for role, wait in waits.items() if wait[0] * wait[1] <= needed}
    if short:
        are = " and ".join(f"{role}.deadline_s={seconds:g}" for role, (seconds, _) in short.items())
        must = " and ".join(
            f"{role}.deadline_s to more than {needed / factor:g}" for role, (_, factor) in short.items()
        )
        raise ConfigError(
            f"rewards: '{spec['name']}' may take {call:g} s per call and {needed - call:g} s for its retries and "
            f"restarts, but {are}: set {must}"
        )
