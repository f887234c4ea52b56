"""One option of a run: its default, the values it takes and its help, declared in one place.

The dataclasses of `rlsys/config/schema.py` declare every option with `option`. From these declarations come the checks
(`rlsys/config/bounds.py`), the nearest matches for misspelt keys (`rlsys/config/overrides.py`), the shell completion
and docs/configuration.md (`rlsys/config/reference.py`).
"""

from __future__ import annotations

import copy
import dataclasses
import math
import operator
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import yaml

from rlsys.errors import closest

# Each bound of a `Rule`: how it compares, its words in messages and its sign in tables.
BOUNDS: dict[str, tuple[Callable[[Any, Any], bool], str, str]] = {
    "ge": (operator.ge, "at least", ">="),
    "gt": (operator.gt, "above", ">"),
    "le": (operator.le, "at most", "<="),
    "lt": (operator.lt, "below", "<"),
}
# Comparisons in the condition of a `Need`.
SIGNS: dict[str, Callable[[Any, Any], bool]] = {"=": operator.eq, "!=": operator.ne, ">": operator.gt}


@dataclass(frozen=True)
class Rule:
    """The meaning of one option, and the values that it takes. A null passes wherever the option's type allows it."""

    help: str
    ge: float | None = None
    gt: float | None = None
    le: float | None = None
    lt: float | None = None
    choices: tuple[Any, ...] = ()
    any_number: bool = False  # a number without bounds, on purpose

    def bounds(self) -> dict[str, float]:
        """Return the bounds that are set, as `{"ge": 1}`."""
        return {name: bound for name in BOUNDS if (bound := getattr(self, name)) is not None}

    def complaint(self, value: Any, *, with_bounds: bool = True) -> str | None:
        """Return what is wrong with `value`, or None. Of a list or tuple every number is checked."""
        if self.choices and value is not None and value not in self.choices:
            near = closest(str(value), map(str, self.choices))
            hint = f"; did you mean '{near}'?" if near is not None else ""
            return f"must be one of {', '.join(map(str, self.choices))}{hint}"
        for number in value if isinstance(value, list | tuple) else (value,):
            # True is an int to Python, and a list of texts has no bounds.
            if isinstance(number, bool) or not isinstance(number, int | float):
                continue
            if not math.isfinite(number):
                return "must be a finite number"
            if with_bounds and not all(BOUNDS[name][0](number, bound) for name, bound in self.bounds().items()):
                words = [f"{BOUNDS[name][1]} {bound}" for name, bound in self.bounds().items()]
                return f"must be {' and '.join(words)}"
        return None


@dataclass(frozen=True)
class Need:
    """A condition on another option, without which an option has no effect: `learner.lora.rank > 0`."""

    key: str  # dotted
    sign: str  # one of `SIGNS`
    value: Any

    def holds(self, config: Any) -> bool:
        """Return whether the condition holds in a whole configuration."""
        found = config
        for name in self.key.split("."):
            found = found[name] if isinstance(found, dict) else getattr(found, name)
        return SIGNS[self.sign](found, self.value)

    def __str__(self) -> str:
        return f"{self.key} {self.sign} {'null' if self.value is None else str(self.value).lower()}"


@dataclass(frozen=True)
class AnyNeed:
    """Conditions of which one must hold."""

    needs: tuple[Need, ...]

    def holds(self, config: Any) -> bool:
        """Return whether one of them holds in a whole configuration."""
        return any(need.holds(config) for need in self.needs)

    def __str__(self) -> str:
        return " or ".join(map(str, self.needs))


def needs_of(declared: Any, prefix: str) -> tuple[Need | AnyNeed, ...]:
    """Return the conditions in a dataclass field's metadata: `option` puts them there, and `field` for a section.

    `prefix` begins the keys of the field's neighbours, as `learner.lora.`.
    """
    found: list[Need | AnyNeed] = []
    for text in filter(None, declared.metadata.get("needs", "").split(" and ")):
        needs = tuple(_need(one, prefix) for one in text.split(" or "))
        found.append(needs[0] if len(needs) == 1 else AnyNeed(needs))
    return tuple(found)


def _need(text: str, prefix: str) -> Need:
    key, sign, value = text.split(" ")
    return Need(key if "." in key else prefix + key, sign, yaml.safe_load(value))


def option(default: Any, *, needs: str = "", **rule: Any) -> Any:
    """Declare a dataclass field with its default and its `Rule` (`help`, `ge`, `gt`, `le`, `lt`, `choices`).

    `needs` is the condition without which the option has no effect, as `rank > 0`, or several joined by ` and `, each
    perhaps with alternatives, joined by ` or `. A key without a dot is a neighbour in the same section.
    """
    metadata = {"rule": Rule(**rule), "needs": needs}
    if isinstance(default, list | dict):  # each instance gets its own
        return field(default_factory=lambda: copy.deepcopy(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Option:
    """An option at its place in a configuration."""

    key: str  # dotted, as on the command line
    type: str  # as written in the dataclass
    value: Any
    rule: Rule
    needs: tuple[Need | AnyNeed, ...] = ()  # its own, and those of the sections around it

    @property
    def is_open(self) -> bool:
        """Whether its keys are free: the options of a function, or names of columns."""
        return self.type.startswith("dict[")


def options(config: Any, prefix: str = "", around: tuple[Need | AnyNeed, ...] = ()) -> Iterator[Option]:
    """Yield every option of a dataclass instance, in the order of declaration.

    `prefix` and `around` are those of the section: the beginning of its keys, and what all of its options need.
    """
    for one in dataclasses.fields(config):
        value, needs = getattr(config, one.name), (*around, *needs_of(one, prefix))
        if dataclasses.is_dataclass(value):
            yield from options(value, f"{prefix}{one.name}.", needs)
        else:
            yield Option(f"{prefix}{one.name}", str(one.type), value, one.metadata["rule"], needs)
