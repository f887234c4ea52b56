"""Reward functions written for OpenRLHF, used unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlsys.rewards import openrlhf_labels, outside, plain, register
from rlsys.rewards.tags import source_of


@register("openrlhf_function", check=outside, paths=("function",), tags=source_of)
class OpenRLHFFunction:
    """An OpenRLHF function `f(queries, prompts, labels)` that returns rewards or `{rewards, scores, extra_logs}`.

    Queries are prompt and response as one text; labels are the column `label`, else `answer`. `scores` are not used:
    `algorithm.groups` works on the rewards. The means of `extra_logs` become metrics under their names.

    Unlike in OpenRLHF, prompts are the contents of the messages, without the tokens of a chat template.

    Args:
        function: `path.py:reward_func` or `module:function`.
    """

    def __init__(self, *, function: str) -> None:
        self._function = outside(function=function)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], log_metric: Any, **columns: Sequence[Any]
    ) -> list[float]:
        """Return one score per completion."""
        texts = [plain(prompt) for prompt in prompts]
        queries = [text + plain(completion) for text, completion in zip(texts, completions, strict=True)]
        given = self._function(queries, texts, openrlhf_labels(columns, len(texts)))
        if not isinstance(given, dict):
            return _numbers(given)
        for name, value in (given.get("extra_logs") or {}).items():
            log_metric(name, float(np.mean(_numbers(value))))
        return _numbers(given["rewards"])


def _numbers(values: Any) -> list[float]:
    """Return a tensor, an array or a list as a list of floats."""
    return [float(value) for value in np.asarray(values, dtype=np.float64).reshape(-1)]
