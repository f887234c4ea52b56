"""Programs that pass all of their test cases (open-r1's `binary_code`)."""

from __future__ import annotations

from typing import Any

from rlsys.rewards import Failed, Scores, register
from rlsys.rewards.code import Code, check_code

THRESHOLD = 0.99


@register("binary_code", check=check_code, deadline_s=300.0)
class BinaryCode(Code):
    """1 where `code` would give more than 0.99, else 0; the same options and columns."""

    def __call__(
        self, completions: list[Any], verification_info: list[Any], deadline_s: float, log_metric: Any, **_: Any
    ) -> Scores:
        """One verdict a completion."""
        shares = super().__call__(completions, verification_info, deadline_s, log_metric)
        return [share if share is None or isinstance(share, Failed) else float(share > THRESHOLD) for share in shares]
