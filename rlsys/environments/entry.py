"""The run's `environment` and `tools`: what they name, and an object of it for each episode."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from rlsys.config.paths import absolute_function
from rlsys.environments import registry
from rlsys.environments.tools import Tools, load_tools
from rlsys.environments.trl import TrlEnvironment
from rlsys.errors import ConfigError

COLUMN = "environment"  # of rows that choose among several
Make = Callable[[Mapping[str, Any]], Any]  # makes the environment of a row


@dataclass(frozen=True)
class EnvironmentSpec:
    """What to make for each episode."""

    entries: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # by the column's value; "": of every row
    tools: Sequence[str] = ()

    @classmethod
    def of(cls, environment: Any, tools: Sequence[str]) -> EnvironmentSpec:
        """Return what the options ask for; raises ConfigError for another form."""
        given = absolute(environment)
        if given is None:
            return cls({}, tools)
        return cls({"": given} if "name" in given else given, tools)

    @property
    def gives_rewards(self) -> bool:
        """Whether an episode that a limit ends, without a reward, counts as 0."""
        return any(_target(entry)[1] != "trl" or hasattr(_target(entry)[0], "get_reward") for entry in self._entries())

    @property
    def has_tools(self) -> bool:
        """Whether the policy will be shown tools for sure; an environment of rlsys's own form may have some, too."""
        return bool(self.tools) or any(_target(entry)[1] == "trl" for entry in self._entries())

    def maker(self) -> Make:
        """Import everything; return the function that makes the environment of a row.

        Raises ConfigError for names, options or classes that cannot work.
        """
        tools = load_tools(self.tools)
        if not self.entries:
            made = Tools(tools)  # it has no state
            return lambda _: made
        makers = {key: _maker(entry, tools) for key, entry in self.entries.items()}
        return partial(_chosen, makers)

    def _entries(self) -> list[Mapping[str, Any]]:
        return list(self.entries.values())


def absolute(environment: Any) -> dict[str, Any] | None:
    """Return the option `environment` as an entry, or several by name, with absolute file names.

    Raises ConfigError for another form.
    """
    if environment is None:
        return None
    if isinstance(environment, str):
        environment = {"name": environment}
    if isinstance(environment, Mapping) and isinstance(environment.get("name"), str):
        return {**environment, "name": absolute_function(environment["name"])}
    if isinstance(environment, Mapping) and environment and "name" not in environment:
        several = {str(key): absolute(entry) for key, entry in environment.items()}
        if all(entry is not None and "name" in entry for entry in several.values()):
            return several
    raise ConfigError(
        f"environment={environment!r}: give a name, {{name: ..., option: value}}, or a mapping of these by the value "
        f"of the column '{COLUMN}'; known names: {', '.join(registry.names())}, or path.py:Class"
    )


def _chosen(makers: Mapping[str, Callable[[], Any]], row: Mapping[str, Any]) -> Any:
    """Make the environment that a row chooses."""
    key = "" if "" in makers else str(row.get(COLUMN))
    if key not in makers:
        raise ConfigError(f"column '{COLUMN}' is {key!r}; `environment` has {', '.join(sorted(makers))}")
    return makers[key]()


def _target(entry: Mapping[str, Any]) -> tuple[Any, str]:
    """Return an entry's class, and whose form it has; raises ConfigError for what is no environment."""
    name = str(entry["name"])
    target = registry.get(name)
    methods = [method for method in ("start", "step", "reset") if callable(getattr(target, method, None))]
    if inspect.isclass(target) and {"start", "step"} <= set(methods):
        return target, "rlsys"
    if inspect.isclass(target) and "reset" in methods:
        return target, "trl"
    found = f"it has {', '.join(methods)}" if methods else "it has none of these"
    raise ConfigError(
        f"environment '{name}' must be a class with the methods `start` and `step`, or `reset` of TRL's form; {found}"
    )


def _maker(entry: Mapping[str, Any], tools: list[Any]) -> Callable[[], Any]:
    """Return what makes one entry's environment."""
    form, bound = _target(entry)[1], registry.component(entry)
    if form == "rlsys":
        if tools:
            raise ConfigError(f"environment '{entry['name']}' has a `step` of its own, so `tools` cannot be beside it")
        return bound
    TrlEnvironment(bound(), tools)  # a method that makes no tool is an error now, not in an episode
    return lambda: TrlEnvironment(bound(), tools)
