"""The session's table of families, compared with docs/models.md at the end, or written there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.families.families import BOUND, VARIANTS, WAYS
from tests.families.table import Table

PAGE = Path(__file__).parents[2] / "docs" / "models.md"


@pytest.fixture(scope="session")
def table() -> Iterator[Table]:
    """The page's outcomes, with this session's in the place of those of the same cases."""
    before = PAGE.read_text() if PAGE.exists() else ""
    collected = Table(VARIANTS, list(WAYS), before)
    yield collected
    if os.environ.get("RLSYS_WRITE"):
        PAGE.write_text(collected.page(BOUND))
    else:
        assert before == collected.page(BOUND), "docs/models.md does not fit: write it with RLSYS_WRITE=1"
