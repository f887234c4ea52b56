"""open-r1's code_format: its format, with a block of code in the answer."""

from __future__ import annotations

import re
from typing import Any

from rlsys.rewards import Scores, register
from rlsys.rewards._think_answer import ANYTHING, laid_out


@register("code_format")
def code_format(completions: list[Any], *, language: str = "python", **_: Any) -> Scores:
    """1 where the response has `format`'s layout and its answer a fenced block of `language`; else 0.

    open-r1 also reads a `language` column; here the option counts for every row.
    """
    return laid_out(completions, rf"{ANYTHING}```{re.escape(language)}{ANYTHING}```{ANYTHING}")
