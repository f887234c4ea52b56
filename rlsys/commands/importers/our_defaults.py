"""The defaults of rlsys, against which an imported recipe is compared: only what differs is written."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from rlsys.algorithms import advantages, aggregation, policy_losses
from rlsys.config import dotted
from rlsys.config.compose import compose
from rlsys.config.option import options
from rlsys.config.schema import Config
from rlsys.registry import Registry

# Keys that hold a function's name and the function's own options.
FUNCTIONS: dict[str, Registry[Any]] = {
    "algorithm.advantage": advantages.registry,
    "algorithm.policy_loss": policy_losses.registry,
    "algorithm.aggregation": aggregation.registry,
}
MISSING = object()


@functools.cache
def defaults() -> dict[str, Any]:
    """Return the configuration of a run without experiment: the defaults of the schema and of the default groups."""
    # Not turned into dataclasses: there `auto` has become what it means on this machine.
    composed = OmegaConf.to_container(compose([]), resolve=True)
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


def look_up(key: str, tree: Mapping[str, Any]) -> Any:
    """Return the value at a dotted key of a nested configuration, MISSING when there is none.

    An option of a function that is not set has the default of the function's signature.
    """
    prefix, _, option = key.rpartition(".")
    node = dotted.look_up(tree, prefix) if prefix in FUNCTIONS else None
    return {**_signature(prefix, node), **node}.get(option, MISSING) if node else dotted.look_up(tree, key, MISSING)


def differences(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dotted keys that change a run with their values, in the order of the configuration schema."""
    values = {key: _without_defaults(key, value) for key, value in written.items()}
    ordered = [option.key for option in options(Config()) if option.key in values]
    return {key: values[key] for key in ordered if values[key] != look_up(key, defaults())}


def gather_function_options(written: dict[str, Any]) -> None:
    """Move the options of functions below the function's key: `algorithm.policy_loss.clip_low` into its mapping.

    Options that the chosen function does not have are left out.
    """
    for prefix in FUNCTIONS:
        below = {key: written.pop(key) for key in list(written) if key.startswith(f"{prefix}.")}
        node = written.pop(prefix, {}) | {key.removeprefix(f"{prefix}."): value for key, value in below.items()}
        if node:
            written[prefix] = {option: node[option] for option in _signature(prefix, node) if option in node}


def _without_defaults(key: str, value: Any) -> Any:
    """Return a function without the options that equal its own defaults, and a tuple as the list that YAML makes."""
    if key in FUNCTIONS:
        signature = _signature(key, value) | {"name": MISSING}
        return {name: option for name, option in value.items() if option != signature[name]}
    return list(value) if isinstance(value, tuple) else value


def _signature(key: str, node: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options of the function named in `node` with their defaults, after its name."""
    parameters = inspect.signature(FUNCTIONS[key].get(str(node["name"]))).parameters.items()
    empty = inspect.Parameter.empty
    return {"name": node["name"]} | {name: MISSING if p.default is empty else p.default for name, p in parameters}
