"""Our side: what a run has by default, and what an imported recipe changes of it."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping
from typing import Any

from omegaconf import OmegaConf

from rlsys.algorithms import advantages, aggregation, policy_losses
from rlsys.config import dotted
from rlsys.config.compose import load_config
from rlsys.config.overrides import known_keys
from rlsys.registry import Registry

FUNCTIONS: dict[str, Registry[Any]] = {
    "algorithm.advantage": advantages.registry,
    "algorithm.policy_loss": policy_losses.registry,
    "algorithm.aggregation": aggregation.registry,
}
"""Keys that hold a function's name and its own options."""
MISSING = object()


@functools.cache
def defaults() -> dict[str, Any]:
    """What a run without experiment is made of: the schema's defaults and the default groups'."""
    composed = OmegaConf.to_container(OmegaConf.structured(load_config([])))
    assert isinstance(composed, dict)
    return {str(key): value for key, value in composed.items()}


@functools.cache
def _schema_keys() -> frozenset[str]:
    return known_keys()


def look_up(key: str, tree: Mapping[str, Any]) -> Any:
    """The value at a dotted key of a nested mapping, MISSING when there is none.

    Below a function's key an option that is not set has the default of the function's signature.
    """
    for prefix, registry in FUNCTIONS.items():
        if key.startswith(f"{prefix}."):
            node, option = look_up(prefix, tree), key.removeprefix(f"{prefix}.")
            return MISSING if node is MISSING else node.get(option, _signature_default(registry, node, option))
    return dotted.look_up(tree, key, MISSING)


def differences(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return the dotted keys that change a run with their values, in the order of the configuration schema."""
    changed = {}
    for key, value in written.items():
        value = _without_defaults(key, value)
        if value != look_up(key, defaults()):
            changed[key] = value
    return {key: changed[key] for key in _schema_keys() if key in changed}


def with_function_nodes(written: Mapping[str, Any]) -> dict[str, Any]:
    """Return written keys with the options of functions gathered under the function's key.

    `algorithm.policy_loss.name` and `algorithm.policy_loss.clip_low` become one mapping `algorithm.policy_loss`.
    Options that the function named there does not have are left out.
    """
    gathered = {key: value for key, value in written.items() if key.rpartition(".")[0] not in FUNCTIONS}
    for prefix, registry in FUNCTIONS.items():
        below = {
            key.removeprefix(f"{prefix}."): value for key, value in written.items() if key.startswith(f"{prefix}.")
        }
        node = {**gathered.get(prefix, {}), **below}
        if "name" in node:
            accepted = ("name", *inspect.signature(registry.get(str(node["name"]))).parameters)
            gathered[prefix] = {option: node[option] for option in accepted if option in node}
    return gathered


def _without_defaults(key: str, value: Any) -> Any:
    """A function's options less those that it has by itself; tuples as lists, as YAML has them."""
    if key in FUNCTIONS:
        signature = {name: _signature_default(FUNCTIONS[key], value, name) for name in value}
        return {name: option for name, option in value.items() if name == "name" or option != signature[name]}
    return list(value) if isinstance(value, tuple) else value


def _signature_default(registry: Registry[Any], node: Mapping[str, Any], option: str) -> Any:
    parameter = inspect.signature(registry.get(str(node["name"]))).parameters.get(option)
    return MISSING if parameter is None or parameter.default is inspect.Parameter.empty else parameter.default
