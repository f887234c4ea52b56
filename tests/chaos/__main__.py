"""Random faults against a small real run: `python -m tests.chaos [--faults 100] [--seed N] [--minutes N] [--write]`.

It takes about half a minute per fault, prints every outcome and ends with 1 unless all were survived, no prompt was
lost or trained twice, nothing of the run is left, and the policy has learnt. `--write` keeps the report in
benchmarks/results/chaos.json.
"""

from __future__ import annotations

import argparse
import math
import random
import secrets
import tempfile
from pathlib import Path
from statistics import median
from typing import Any

from rich.table import Table

from benchmarks import report
from benchmarks.side import end_on_sigterm
from tests.chaos.campaign import choose, run_campaign
from tests.chaos.faults import FAULTS
from tests.chaos.ledger import check


def main() -> None:
    """Play the campaign and report."""
    parser = argparse.ArgumentParser("python -m tests.chaos", description=__doc__)
    parser.add_argument("--faults", type=int, default=100)
    parser.add_argument("--seed", type=int, default=secrets.randbelow(10**6))
    parser.add_argument("--kinds", nargs="+", choices=FAULTS, help="these, in this order, instead of random ones")
    parser.add_argument("--folder", type=Path, help="an empty folder for the run, which is kept; else a temporary one")
    parser.add_argument("--minutes", type=float, default=math.inf, help="cause no more faults after so long")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    end_on_sigterm()
    header = report.header("tests.chaos")
    print(f"seed {options.seed}", flush=True)
    rng = random.Random(options.seed)
    kinds = options.kinds or choose(options.faults, rng)
    with tempfile.TemporaryDirectory(prefix="rlsys-chaos-") as made:
        place = options.folder or Path(made)
        found = run_campaign(place, kinds, rng, lambda outcome: print(outcome, flush=True), 60 * options.minutes)
    print({name: value for name, value in found.items() if name != "outcomes"})
    report.show(_table(found["outcomes"]))
    if options.write:
        print(f"written: {report.write('chaos', {**header, 'seed': options.seed, **found})}")
    check(found)


def _table(outcomes: list[dict[str, Any]]) -> Table:
    shown = report.table("faults", ["kind", "tried", "survived", "median s", "longest s", "steps again"])
    for kind in sorted({outcome["kind"] for outcome in outcomes}):
        of_kind = [outcome for outcome in outcomes if outcome["kind"] == kind]
        seconds = [outcome["recovered_s"] for outcome in of_kind if outcome["survived"]]
        times = [report.number(function(seconds) if seconds else None, 1) for function in (median, max)]
        counts = [len(of_kind), len(seconds), sum(outcome["lost_steps"] for outcome in of_kind)]
        shown.add_row(kind, *map(str, counts[:2]), *times, str(counts[2]))
    return shown


if __name__ == "__main__":
    main()
