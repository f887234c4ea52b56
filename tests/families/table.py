"""The table of docs/models.md: what the test of the families found."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

HEAD = """\
# Model families

Written by the test that fills the table: `RLSYS_WRITE=1 bash launch/test.sh -m long tests/families`, or a part of it
with `-k`. Without `RLSYS_WRITE` the test compares what it finds with this page.

For each row, and each way of training, the test builds a tiny model of the family, with embeddings tied to the output
layer or not, and runs two steps on CPUs in float32: real engines sample, the learner updates, the weights are
broadcast, and at every step engines and learner compare log-probabilities. Then the policy is saved, or its adapter
merged, and transformers (its own forward, plain attention) and a new vLLM engine load the folder. **Right** means that
both give the log-probabilities that the run's engine sampled with, within {bound:g} nats for every token. **Refused**
means that the run ends before Ray starts, with the reason below the table.

After *right* stands the layout that `learner.packing=auto` finds: `shared_prompt` computes each prompt once per group,
`padded` computes every response with its prompt ([how the learner packs](architecture.md#how-the-learner-packs)).
Adapters are on every linear layer, in mixtures of experts on those of the attention: `all-linear` would include
experts, which cannot have them, and is refused by name. DeepSeek's `kv_b_proj` has none either: engines multiply with
its weight without calling the layer, and the check after the first update would end the run.

"""

TAIL = """
Other families are not refused by name. When a model is loaded, each rank tries it on a few tokens and refuses it if its
layers or its output would be computed differently from the model's own forward.
"""

NOT_RUN = "not run"
Case = tuple[str, str, str]  # family, tied or untied, way of training


@dataclass(frozen=True)
class Outcome:
    """One family in one way of training: right in `layout`, or refused with a reason."""

    layout: str | None = None
    refused: str | None = None


class Table:
    """Outcomes by family, tied or untied embeddings, and way of training."""

    def __init__(self, variants: Sequence[tuple[str, bool]], ways: Sequence[str], page: str = "") -> None:
        """Begin with the outcomes of a page that was written before."""
        self._rows = [(family, embeddings(is_tied)) for family, is_tied in variants]
        self._ways = ways
        self._outcomes = {case: outcome for case, outcome in _read(page).items() if case[:2] in self._rows}

    def add(self, family: str, is_tied: bool, way: str, outcome: Outcome) -> None:
        """Add one outcome, in the place of an earlier one."""
        self._outcomes[family, embeddings(is_tied), way] = outcome

    def remove(self, family: str, is_tied: bool, way: str) -> None:
        """Take an earlier outcome away, if there is one."""
        self._outcomes.pop((family, embeddings(is_tied), way), None)

    def page(self, bound: float) -> str:
        """Return docs/models.md."""
        refused = [outcome.refused for outcome in map(self._outcome, self._cases()) if outcome and outcome.refused]
        reasons = list(dict.fromkeys(refused))
        rows = [
            " | ".join(["", *row, *(_cell(self._outcome((*row, way)), reasons) for way in self._ways), ""]).strip()
            for row in self._rows
        ]
        notes = [f"{number}. {reason}" for number, reason in enumerate(reasons, 1)]
        head = [f"| family | embeddings | {' | '.join(self._ways)} |", f"|---|---|{'---|' * len(self._ways)}"]
        return HEAD.format(bound=bound) + "\n".join([*head, *rows, *([""] if notes else []), *notes]) + "\n" + TAIL

    def _cases(self) -> list[Case]:
        return [(*row, way) for row in self._rows for way in self._ways]

    def _outcome(self, case: Case) -> Outcome | None:
        return self._outcomes.get(case)


def _cell(outcome: Outcome | None, reasons: Sequence[str]) -> str:
    if outcome is None:
        return NOT_RUN
    return f"right, {outcome.layout}" if outcome.refused is None else f"refused ({reasons.index(outcome.refused) + 1})"


def _read(page: str) -> dict[Case, Outcome]:
    """Return the outcomes that a page shows."""
    reasons = dict(re.findall(r"^(\d+)\. (.*)$", page, re.MULTILINE))
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in page.splitlines() if line[:1] == "|"]
    found = {}
    for family, tied, *cells in rows[2:]:
        for way, cell in zip(rows[0][2:], cells, strict=True):
            kind, _, rest = cell.replace(" (", ", ").rstrip(")").partition(", ")
            if kind == "right":
                found[family, tied, way] = Outcome(layout=rest)
            elif kind == "refused":
                found[family, tied, way] = Outcome(refused=reasons[rest])
    return found


def embeddings(is_tied: bool) -> str:
    """Return the table's word for tied or untied embeddings."""
    return "tied" if is_tied else "untied"
