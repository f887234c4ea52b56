"""The session's table of families; once every case has run it is compared with docs/models.md, or written there."""

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
    """The outcomes of this session's cases."""
    collected = Table(VARIANTS, list(WAYS))
    yield collected
    if not collected.is_complete:  # only some cases were chosen, or one failed
        return
    if os.environ.get("RLSYS_WRITE"):
        PAGE.write_text(collected.page(BOUND))
    assert PAGE.read_text() == collected.page(BOUND), "docs/models.md does not fit: write it with RLSYS_WRITE=1"
