"""open-r1's accuracy: mathematics compared by the math-verify library."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, register
from rlsys.rewards._math_verify import verdicts


@register("accuracy", imports=("math_verify",))
def accuracy(completions: list[Any], solution: list[Any], **_: Any) -> Scores:
    """1 where the response's answer equals the `solution` column's, 0 where it differs or the response has none.

    The answer must be LaTeX, in `\\boxed{...}` or after words such as `The final answer is`; a formula elsewhere is no
    answer. A solution that cannot be parsed is not applicable.
    """
    return [None if right is None else float(right) for right in verdicts(completions, solution)]
