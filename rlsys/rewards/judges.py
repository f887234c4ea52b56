"""The rewards that judge answers: they decide what counts as correct, whatever other rewards add to the total.

A reward says that it judges answers by the fact `judges_answers` at its registration, or, outside code, by an attribute
of that name of its function or class: `score.judges_answers = True`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlsys.config.schema import Config
from rlsys.errors import ConfigError, nearest
from rlsys.rewards import registry
from rlsys.rewards.entry import function_options, labels_of
from rlsys.types import Reward


def judges_of(config: Config) -> tuple[str, ...]:
    """Return the labels of the rewards that judge answers: `eval.accuracy_from`, else those that say that they do.

    Raises:
        ConfigError: `eval.accuracy_from` names no reward of the run.
    """
    labelled = dict(labels_of(config))
    named = config.eval.accuracy_from
    if named is None:
        return tuple(label for label, spec in labelled.items() if judges_answers(spec))
    if named not in labelled:
        raise ConfigError(f"eval.accuracy_from={named} is no reward of this run: {nearest(named, labelled)}")
    return (named,)


def judges_answers(spec: Mapping[str, Any]) -> bool:
    """Return whether an entry of `rewards` says that it judges answers."""
    name = str(spec["name"])
    if ":" in name:
        return bool(getattr(registry.get(name), "judges_answers", False))
    fact = registry.fact(name, "judges_answers", False)
    return bool(fact(**function_options(spec)) if callable(fact) else fact)


def judged(reward: Reward, judges: Sequence[str]) -> float | None:
    """Return the value that decides whether a response is correct: that of the judge, or the total if there is none.

    Of several judges that apply the strictest decides. None: the reward is not valid, or no judge applies.
    """
    if not judges or reward.total is None:
        return reward.total
    values = [value for label in judges if (value := reward.parts[label].value) is not None]
    return min(values, default=None)
