"""open-r1's `length`: Kimi k1.5's reward for short responses to a prompt (arXiv:2501.12599, section 2.3.3)."""

from __future__ import annotations

import itertools
from typing import Any

from rlsys.rewards import Scores, content, register
from rlsys.rewards._math_verify import is_solution, verdicts


@register("length", imports=("math_verify",), whole_groups=True, usable=("solution", is_solution))
def length(prompts: list[Any], completions: list[Any], solution: list[Any], **_: Any) -> Scores:
    """Score from 0.5 for the shortest of a prompt's responses to -0.5 for the longest, linear in characters.

    A wrong response gets at most 0. If all are equally long, each gets 0. A single response has nothing to be compared
    with and is not applicable. `accuracy` decides what is right; rows whose solution cannot be parsed are not
    applicable.

    open-r1 takes the shortest and the longest of all responses in a call, whatever their prompts, and counts a response
    as right if its solution cannot be parsed. Here they are those of one prompt, as in the paper: neighbouring rows
    with the same prompt and solution form a group, so each call must hold all responses of its prompts.
    """
    lengths = [len(content(completion)) for completion in completions]
    rows = zip(prompts, solution, lengths, verdicts(completions, solution), strict=True)
    scores: Scores = []
    # By prompt and solution: data sets may repeat a prompt with another solution.
    for _prompt, group in itertools.groupby(rows, key=lambda row: row[:2]):
        scores += _compared([row[2:] for row in group])
    return scores


def _compared(responses: list[tuple[int, bool | None]]) -> Scores:
    """Return the scores of one prompt's responses, given as length and verdict."""
    if len(responses) == 1:
        return [None]
    lengths = [characters for characters, _ in responses]
    shortest, longest = min(lengths), max(lengths)
    scores: Scores = []
    for characters, right in responses:
        if right is None:
            scores.append(None)
            continue
        score = 0.5 - (characters - shortest) / (longest - shortest) if longest > shortest else 0.0
        scores.append(score if right else min(0.0, score))
    return scores
