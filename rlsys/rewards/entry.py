"""An entry of the run's `rewards` list: the function it names, its label, and how long a call may take."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlsys.config.paths import absolute_function, absolute_if_there
from rlsys.config.schema import Config
from rlsys.rewards import registry

RESERVED = ("name", "weight", "deadline_s")
"""Keys of an entry of `rewards` that are not the function's options."""


def absolute(spec: Mapping[str, Any]) -> dict[str, Any]:
    """The same entry of `rewards` with files that do not depend on a worker's working directory: a `path.py:function`,
    and the options that the function registered as `paths`."""
    name = str(spec.get("name", ""))
    files = [option for option in registry.fact(name, "paths", ()) if isinstance(spec.get(option), str)]
    return {**spec, "name": absolute_function(name), **{option: absolute_if_there(spec[option]) for option in files}}


def deadline_of(spec: Mapping[str, Any], default: float) -> float:
    """Seconds that a call may take: as its entry says, as it was registered with, or `default`."""
    return float(spec.get("deadline_s") or registry.fact(str(spec["name"]), "deadline_s", default))


def bind_reward(spec: Mapping[str, Any]) -> Callable[..., Any]:
    """The function that one entry of `rewards` names, with its options; of a class an object, made now. Raises
    ConfigError when name or option is unknown, and what making an object raises."""
    bound = registry.bind(str(spec["name"]), function_options(spec))
    made: Callable[..., Any] = bound() if is_class(spec) else bound
    return made


def function_options(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in spec.items() if key not in RESERVED}


def is_class(spec: Mapping[str, Any]) -> bool:
    return inspect.isclass(registry.get(str(spec["name"])))


def longest_s(call_deadline_s: float, row_deadline_s: float) -> float:
    """Seconds of `RewardProcess.score` with a call that fails and every retry."""
    return call_deadline_s + max(call_deadline_s, row_deadline_s)


def labelled(rewards: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Each reward with a label for metrics: its name without the path, numbered where a name comes twice."""
    labels: list[str] = []
    for spec in rewards:
        base = str(spec["name"]).rpartition(":")[2]
        candidates = (base if number == 1 else f"{base}_{number}" for number in itertools.count(1))
        labels.append(next(label for label in candidates if label not in labels))
    return list(zip(labels, [dict(spec) for spec in rewards], strict=True))


def wants_whole_groups(config: Config) -> bool:
    """Whether a prompt's responses go to the reward functions together."""
    named = (registry.fact(str(spec["name"]), "whole_groups", False) for spec in config.rewards)
    return config.scoring.whole_groups or any(named)
