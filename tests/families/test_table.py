"""The page of the families: what is written is read back, and the page in the tree is complete."""

from __future__ import annotations

from tests.families.conftest import PAGE
from tests.families.families import BOUND, VARIANTS, WAYS
from tests.families.table import NOT_RUN, Outcome, Table


def test_a_page_is_read_back_and_completed() -> None:
    variants = [("A, B", True), ("A, B", False), ("C", True)]
    table = Table(variants, ["one", "two"])
    table.add("A, B", True, "one", Outcome(layout="padded"))
    table.add("A, B", False, "two", Outcome(refused="it (this one) cannot"))
    table.add("C", True, "two", Outcome(refused="it is closed"))
    page = table.page(1e-3)
    assert "| A, B | tied | right, padded | not run |" in page
    assert "| C | tied | not run | refused (2) |" in page
    again = Table(variants, ["one", "two"], page)
    assert again.page(1e-3) == page
    again.add("A, B", False, "two", Outcome(layout="shared_prompt"))
    assert "| A, B | untied | not run | right, shared_prompt |" in again.page(1e-3)
    assert "| C | tied | not run | refused (1) |" in again.page(1e-3)
    again.remove("C", True, "two")
    assert "| C | tied | not run | not run |" in again.page(1e-3)
    assert "| C | tied |" not in Table(variants[:2], ["one", "two"], page).page(1e-3)


def test_the_page_in_the_tree_has_an_outcome_for_every_family() -> None:
    written = PAGE.read_text()
    assert Table(VARIANTS, list(WAYS), written).page(BOUND) == written
    assert NOT_RUN not in written
