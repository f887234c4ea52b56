"""open-r1's `accuracy`: mathematical answers compared by the math-verify library."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Scores, register
from rlsys.rewards._math_verify import is_solution, verdicts


@register("accuracy", imports=("math_verify",), judges_answers=True, usable=("solution", is_solution))
def accuracy(completions: list[Any], solution: list[Any], **_: Any) -> Scores:
    r"""Score 1 if the response's answer equals the column `solution`, 0 if it differs or there is no answer.

    The answer must be LaTeX, in `\boxed{...}` or after words such as `The final answer is`; a formula elsewhere does
    not count as one. Of a list of solutions any counts, and the letter of a choice is compared as text. Rows whose
    solution cannot be parsed are not applicable.
    """
    return [None if right is None else float(right) for right in verdicts(completions, solution)]
