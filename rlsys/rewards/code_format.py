"""open-r1's `code_format`: reasoning and answer between tags, with a code block in the answer."""

from __future__ import annotations

import re
from typing import Any

from rlsys.rewards import Scores, register
from rlsys.rewards._think_answer import ANYTHING, TAGS, format_scores


@register("code_format", tags=TAGS)
def code_format(completions: list[Any], *, language: str = "python", **_: Any) -> Scores:
    """Score 1 if the response has the format of `format` and its answer a fenced block of `language`, else 0.

    open-r1 also reads a column `language`; here the option is for all rows.
    """
    return format_scores(completions, rf"{ANYTHING}```{re.escape(language)}{ANYTHING}```{ANYTHING}")
