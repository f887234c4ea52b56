"""Entries of the run's `rewards` list: the function that an entry names, its label, and its deadline."""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from rlsys.config.paths import absolute_function, absolute_if_there
from rlsys.config.schema import Config
from rlsys.rewards import registry
from rlsys.runtime.proxies import exempt_loopback

# Keys of an entry that are not options of its function.
RESERVED = ("name", "weight", "deadline_s")
ENVIRONMENT = "environment"  # label of the reward that an environment gives
RESTARTS_S = 60.0  # seconds of one batch's retries that may go into starting killed processes again


def absolute(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the entry with absolute paths, so that it does not depend on a worker's working directory.

    Paths are those in a name `path.py:function`, and in the options that the function registered as `paths`.
    """
    name = str(spec.get("name", ""))
    files = [option for option in registry.fact(name, "paths", ()) if isinstance(spec.get(option), str)]
    return {**spec, "name": absolute_function(name), **{option: absolute_if_there(spec[option]) for option in files}}


def deadline_of(spec: Mapping[str, Any], default: float) -> float:
    """Return the seconds that a call may take: the entry's, else those of the registration, else `default`."""
    return float(spec.get("deadline_s") or registry.fact(str(spec["name"]), "deadline_s", default))


def bind_reward(spec: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the function that an entry names with its options filled in; if it is a class, make an object of it now.

    Raises:
        ConfigError: the name or an option is unknown.
        Exception: whatever the class raises when an object is made.
    """
    exempt_loopback()  # before it makes a client, which reads the environment
    bound = registry.bind(str(spec["name"]), function_options(spec))
    made: Callable[..., Any] = bound() if is_class(spec) else bound
    return made


def function_options(spec: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of an entry's function."""
    return {key: value for key, value in spec.items() if key not in RESERVED}


def is_class(spec: Mapping[str, Any]) -> bool:
    """Return whether an entry names a class."""
    return inspect.isclass(registry.get(str(spec["name"])))


def longest_s(call_deadline_s: float, row_deadline_s: float) -> float:
    """Return the most seconds that scoring a batch takes: a call that fails, its rows' retries, and the restarts."""
    return call_deadline_s + max(call_deadline_s, row_deadline_s) + RESTARTS_S


def label_rewards(rewards: Sequence[dict[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """Return each entry with a label for metrics: its name without the path, with a number if it is taken already."""
    labels: list[str] = []
    taken = {ENVIRONMENT}
    for spec in rewards:
        base = str(spec["name"]).rpartition(":")[2]
        # a.py:score, b.py:score -> score, score_2; a number is skipped if a function already has that name.
        candidates = (base if number == 1 else f"{base}_{number}" for number in itertools.count(1))
        labels.append(next(label for label in candidates if label not in taken))
        taken.add(labels[-1])
    return list(zip(labels, [dict(spec) for spec in rewards], strict=True))


def labels_of(config: Config) -> list[tuple[str, dict[str, Any]]]:
    """Return `label_rewards` of a run, with the environment's own reward where it counts."""
    weight = config.episodes.reward_weight
    own = [(ENVIRONMENT, {"name": ENVIRONMENT, "weight": weight})] if config.environment is not None and weight else []
    return [*label_rewards(config.rewards), *own]


def wants_whole_groups(config: Config) -> bool:
    """Return whether all responses of a prompt must go to the reward functions in one call."""
    facts = (registry.fact(str(spec["name"]), "whole_groups", False) for spec in config.rewards)
    return config.scoring.whole_groups or any(facts)
