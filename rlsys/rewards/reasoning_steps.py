"""open-r1's `reasoning_steps`: reasoning in visible steps."""

from __future__ import annotations

import re
from typing import Any

from rlsys.rewards import Scores, content, register

MARK = re.compile(r"Step \d+:|^\d+\.|\n-|\n\*|First,|Second,|Next,|Finally,")
ENOUGH = 3


@register("reasoning_steps")
def reasoning_steps(completions: list[Any], **_: Any) -> Scores:
    """Score a third for each mark of a step, at most 1.

    Marks are `Step 1:`, a line that begins with `-` or `*`, `First,`, `Second,`, `Next,`, `Finally,`, and a number with
    a full stop at the very beginning of the response. As in open-r1, later numbered lines do not count.
    """
    return [min(1.0, len(MARK.findall(content(completion))) / ENOUGH) for completion in completions]
