"""Reward functions written for EasyR1, used unchanged."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlsys.rewards import content, outside, register
from rlsys.rewards.tags import source_of


@register("easyr1_function", check=outside, paths=("function",), judges_answers=True, tags=source_of)
class EasyR1Function:
    """An EasyR1 function `f(reward_inputs: list[dict]) -> list[dict]`, or `f(dict) -> dict` if it is sequential.

    Its inputs are `response`, `response_length` in tokens and `ground_truth` (the column `answer`). Of its result
    `overall` is the reward; the means of the other numbers become metrics under their names. A function with two
    required arguments is called as in EasyR1's first releases: with responses and ground truths, or with one of each.

    Args:
        function: `path.py:compute_score` or `module:function`.
        reward_type: whether a call gets all rows (`batch`) or one (`sequential`).
        options: the function's keyword arguments, EasyR1's `reward_function_kwargs`.
    """

    def __init__(
        self,
        *,
        function: str,
        reward_type: Literal["batch", "sequential"] = "batch",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        found = outside(function=function)
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
        """Return one score per completion."""
        inputs = [
            {"response": content(completion), "response_length": len(ids), "ground_truth": truth}
            for completion, ids, truth in zip(completions, completion_ids, answer, strict=True)
        ]
        scores = self._called(inputs)
        for score in scores:
            # EasyR1 reports every other number of the result, such as the parts `format` and `accuracy`.
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
    """Return how many positional arguments the function requires."""
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(function).parameters.values()
    return sum(p.kind in kinds and p.default is p.empty and p.name not in options for p in parameters)
