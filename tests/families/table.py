"""The table of docs/models.md: what the test of the families found."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

HEAD = """\
# Model families

Written by the test that fills the table: `RLSYS_WRITE=1 bash launch/test.sh -m long tests/families`. Without
`RLSYS_WRITE` the test compares its findings with this page.

For each row, and each way of training, the test builds a tiny model of the family, with embeddings tied to the output
layer or not, and runs two steps on CPUs in float32: real engines sample, the learner updates, the weights are
broadcast, and at every step engines and learner compare log-probabilities. Then the policy is saved, or its adapter
merged, and transformers (its own forward, plain attention) and a new vLLM engine load the folder. **Right** means that
both give the log-probabilities that the run's engine sampled with, within {bound:g} nats for every token. **Refused**
means that the run ends before Ray starts, with the reason below the table.

The layout is the one that `learner.packing=auto` finds: `shared_prompt` computes each prompt once per group, `padded`
computes every response with its prompt ([how the learner packs](architecture.md#how-the-learner-packs)).

"""

TAIL = """
Other families are not refused by name. When a model is loaded, each rank tries it on a few tokens and refuses it if its
layers or its output would be computed differently from the model's own forward.
"""


@dataclass(frozen=True)
class Outcome:
    """One family in one way of training: right in `layout`, or refused with a reason."""

    layout: str | None = None
    refused: str | None = None


class Table:
    """Outcomes by family, tied or untied embeddings, and way of training."""

    def __init__(self, variants: Sequence[tuple[str, bool]], ways: Sequence[str]) -> None:
        self._variants = variants
        self._ways = ways
        self._outcomes: dict[tuple[str, bool, str], Outcome] = {}

    def add(self, family: str, is_tied: bool, way: str, outcome: Outcome) -> None:
        """Add one outcome."""
        self._outcomes[family, is_tied, way] = outcome

    @property
    def is_complete(self) -> bool:
        """Whether every case has an outcome."""
        return len(self._outcomes) == len(self._variants) * len(self._ways)

    def page(self, bound: float) -> str:
        """Return docs/models.md."""
        reasons: list[str] = []
        rows = [self._row(family, is_tied, reasons) for family, is_tied in self._variants]
        notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
        lines = [*self.head_rows(), *rows, *([""] if notes else []), *notes]
        return HEAD.format(bound=bound) + "\n".join(lines) + "\n" + TAIL

    def head_rows(self) -> list[str]:
        """Return the first two lines of the table."""
        return [
            f"| family | embeddings | layout | {' | '.join(self._ways)} |",
            f"|---|---|---|{'---|' * len(self._ways)}",
        ]

    def _row(self, family: str, is_tied: bool, reasons: list[str]) -> str:
        outcomes = [self._outcomes[family, is_tied, way] for way in self._ways]
        layouts = sorted({outcome.layout for outcome in outcomes if outcome.layout})
        cells = [self._cell(outcome, reasons) for outcome in outcomes]
        return f"| {family} | {embeddings(is_tied)} | {', '.join(layouts) or '-'} | {' | '.join(cells)} |"

    @staticmethod
    def _cell(outcome: Outcome, reasons: list[str]) -> str:
        if outcome.refused is None:
            return "right"
        if outcome.refused not in reasons:
            reasons.append(outcome.refused)
        return f"refused ({reasons.index(outcome.refused) + 1})"


def embeddings(is_tied: bool) -> str:
    """Return the table's word for tied or untied embeddings."""
    return "tied" if is_tied else "untied"
