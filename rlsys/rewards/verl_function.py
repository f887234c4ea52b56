"""Reward functions written for verl, used unchanged."""

from __future__ import annotations

import asyncio
import functools
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from rlsys.rewards import content, outside, register
from rlsys.rewards.tags import source_of


@register(
    "verl_function",
    check=outside,
    paths=("function",),
    judges_answers=True,
    tags=source_of,
    one_of=("ground_truth", "reward_model", "answer"),
)
class VerlFunction:
    """A verl function `compute_score(data_source, solution_str, ground_truth, extra_info)`, also an `async` one.

    It returns a number, or a mapping whose `score` is the reward; the means of its other numbers become metrics under
    their names. Ground truths are the column `ground_truth`, else the `ground_truth` in the column `reward_model` of
    verl's data sets, else the column `answer`.

    Args:
        function: `path.py:compute_score` or `module:function`.
        reward_type: whether a call gets one row (`sequential`), or all of them as lists, as verl's batch manager calls
            it (`batch`: data_sources, solution_strs, ground_truths, extra_infos).
        options: the function's keyword arguments, verl's `reward_kwargs`.
    """

    def __init__(
        self,
        *,
        function: str,
        reward_type: Literal["sequential", "batch"] = "sequential",
        options: Mapping[str, Any] | None = None,
    ) -> None:
        self._function = functools.partial(outside(function=function), **(options or {}))
        self._in_batches = reward_type == "batch"

    async def __call__(
        self,
        completions: Sequence[Any],
        log_metric: Any,
        data_source: Sequence[Any] | None = None,
        extra_info: Sequence[Any] | None = None,
        **columns: Any,
    ) -> list[Any]:
        """Return one score per completion."""
        nothing = [None] * len(completions)
        sources, texts = data_source or nothing, [content(completion) for completion in completions]
        truths = _truths(columns)
        infos = [dict(info or {}) for info in extra_info or nothing]  # its own, as in verl: functions may add to it
        if self._in_batches:
            found = self._function(data_sources=sources, solution_strs=texts, ground_truths=truths, extra_infos=infos)
            scores = list(await found if inspect.isawaitable(found) else found)
        else:
            rows = [
                self._function(data_source=source, solution_str=text, ground_truth=truth, extra_info=info)
                for source, text, truth, info in zip(sources, texts, truths, infos, strict=True)
            ]
            waited = await asyncio.gather(*filter(inspect.isawaitable, rows))
            scores = waited or rows
        for score in scores:
            for name, value in score.items() if isinstance(score, Mapping) else ():
                if name != "score" and isinstance(value, int | float):
                    log_metric(name, value)
        return [score["score"] if isinstance(score, Mapping) else score for score in scores]


def _truths(columns: Mapping[str, Any]) -> list[Any]:
    if "ground_truth" in columns:
        return list(columns["ground_truth"])
    if "reward_model" in columns:
        return [None if row is None else row["ground_truth"] for row in columns["reward_model"]]
    return list(columns["answer"])
