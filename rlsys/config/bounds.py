"""The check of each option by itself: bounds and choices, as `rlsys/config/schema.py` declares them."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from rlsys.config.option import Option, options
from rlsys.errors import ConfigError


def check_values(config: Any, *, absent: Collection[str] = ()) -> None:
    """Raise ConfigError for the first option whose value is out of bounds, not finite or not among its choices.

    Args:
        config: a `Config`, or one of its sections.
        absent: roles that the run does not start, as `("critic",)`. Their bounds are not checked, so that
            `reference.num_workers=0` passes without a KL penalty; a misspelt choice or a NaN is refused all the same.
    """
    for option in options(config):
        role = option.key.partition(".")[0]
        rule = option.rule
        wrong = rule.complaint(option.value, with_bounds=role not in absent) or _wrong_length(option) or _empty(option)
        if wrong is not None:
            raise ConfigError(f"{option.key}={option.value}: {wrong} ({rule.help})")


def _empty(option: Option) -> str | None:
    """Return what is wrong with an empty text where null means none, such as `run_dir=` with an unset variable."""
    return "must not be empty; null is none" if option.type == "str | None" and option.value == "" else None


def _wrong_length(option: Option) -> str | None:
    """Return what is wrong with the number of values of a `tuple[...]`: OmegaConf takes lists of any length for it."""
    wanted = option.type.count(",") + 1
    is_tuple = option.type.startswith("tuple[") and "..." not in option.type
    return f"must have {wanted} values" if is_tuple and len(option.value) != wanted else None
