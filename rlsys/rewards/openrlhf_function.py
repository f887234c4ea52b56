"""A reward function as OpenRLHF takes it, unchanged."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlsys.registry import load_external
from rlsys.rewards import openrlhf_labels, plain, register


def _loaded(*, function: str) -> Any:
    return load_external(function, "reward")


@register("openrlhf_function", check=_loaded, paths=("function",))
class OpenRLHFFunction:
    """`f(queries, prompts, labels)`, which returns rewards or `{rewards, scores, extra_logs}`.

    Queries are prompt and response as one text, labels the column `label`, else `answer`. `scores` are not used:
    `algorithm.groups` goes by the rewards. Means of `extra_logs` stand in the metrics under their names.

    Unlike there, prompts are the messages' contents, without the tokens of a chat template.

    Args:
        function: `path.py:reward_func` or `module:function`.
    """

    def __init__(self, *, function: str) -> None:
        self._function = _loaded(function=function)

    def __call__(
        self, prompts: Sequence[Any], completions: Sequence[Any], log_metric: Any, **columns: Sequence[Any]
    ) -> list[float]:
        texts = [plain(prompt) for prompt in prompts]
        queries = [text + plain(completion) for text, completion in zip(texts, completions, strict=True)]
        given = self._function(queries, texts, openrlhf_labels(columns, len(texts)))
        if not isinstance(given, dict):
            return _numbers(given)
        for name, value in (given.get("extra_logs") or {}).items():
            log_metric(name, float(np.mean(_numbers(value))))
        return _numbers(given["rewards"])


def _numbers(values: Any) -> list[float]:
    """Of a tensor, an array or a list."""
    return [float(value) for value in np.asarray(values, dtype=np.float64).reshape(-1)]
