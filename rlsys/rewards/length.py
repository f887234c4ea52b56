"""Kimi k1.5's length reward (arXiv:2501.12599, section 2.3.3), as open-r1 has it: shorter responses of a prompt."""

from __future__ import annotations

import itertools
from typing import Any

from rlsys.rewards import Scores, content, register
from rlsys.rewards._math_verify import verdicts


@register("length", imports=("math_verify",), whole_groups=True)
def length(prompts: list[Any], completions: list[Any], solution: list[Any], **_: Any) -> Scores:
    """0.5 for the shortest of a prompt's responses down to -0.5 for the longest, in a straight line over characters.

    A wrong response gets at most 0. Where all are equally long, each gets 0; a response alone has nothing to be
    compared with and is not applicable. Right and wrong are `accuracy`'s, and a solution that cannot be parsed is not
    applicable.

    open-r1 takes shortest and longest over all responses of a call, whichever prompts they answer, and counts a
    response as right when its solution cannot be parsed. Here they are of one prompt, as in the paper: neighbouring
    rows with the same prompt and solution belong together, so each call must hold all responses of its prompts.
    """
    lengths = [len(content(completion)) for completion in completions]
    rows = zip(prompts, solution, lengths, verdicts(completions, solution), strict=True)
    scores: Scores = []
    for _prompt, group in itertools.groupby(rows, key=lambda row: row[:2]):
        scores += _compared([row[2:] for row in group])
    return scores


def _compared(responses: list[tuple[int, bool | None]]) -> Scores:
    """One prompt's responses, each by its length and verdict."""
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
