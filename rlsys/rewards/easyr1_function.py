"""A reward function as EasyR1 takes it, unchanged."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlsys.registry import load_external
from rlsys.rewards import content, register


def _loaded(*, function: str, **_: Any) -> Any:
    return load_external(function, "reward")


@register("easyr1_function", check=_loaded, paths=("function",))
class EasyR1Function:
    """`f(reward_inputs: list[dict]) -> list[dict]`, or of one such dictionary with `reward_type: sequential`.

    It is given `response`, `response_length` in tokens and `ground_truth` (the `answer` column); of what it returns
    `overall` is the reward, and the means of the other numbers stand in the metrics under their names. A function
    of two arguments is called as in EasyR1's first releases: responses (or one), ground truths.

    Args:
        function: `path.py:compute_score` or `module:function`.
        options: its keyword arguments, EasyR1's `reward_function_kwargs`.
    """

    def __init__(
        self,
        *,
        function: str,
        reward_type: Literal["batch", "sequential"] = "batch",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        found = _loaded(function=function)
        self._function = functools.partial(found, **(options or {}))
        self._takes_two = _num_required(found, options or {}) == 2
        self._in_batches = reward_type == "batch"

    def __call__(
        self,
        completions: Sequence[Any],
        completion_ids: Sequence[list[int]],
        answer: Sequence[Any],
        log_metric: Any,
        **_: Any,
    ) -> list[float]:
        inputs = [
            {"response": content(completion), "response_length": len(ids), "ground_truth": truth}
            for completion, ids, truth in zip(completions, completion_ids, answer, strict=True)
        ]
        scores = self._called(inputs)
        for score in scores:
            for name, value in score.items():
                if name != "overall" and value is not None:
                    log_metric(name, value)
        return [float(score["overall"]) for score in scores]

    def _called(self, inputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not self._takes_two:
            scores = self._function(inputs) if self._in_batches else [self._function(one) for one in inputs]
            return list(scores)
        pairs = [(one["response"], one["ground_truth"]) for one in inputs]
        if self._in_batches:
            return list(self._function(*map(list, zip(*pairs, strict=True))))
        return [self._function(*pair) for pair in pairs]


def _num_required(function: Any, options: Mapping[str, Any]) -> int:
    """Arguments that must be given by place."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(p.kind in kinds and p.default is p.empty and p.name not in options for p in parameters)
