"""`rlsys report RUN [RUN_B]`: a run, or two side by side, as one HTML file that needs no network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rlsys.commands.numbers import at_least
from rlsys.commands.report.page import pack, render
from rlsys.commands.report.rollouts import Rollouts, collect
from rlsys.commands.report.tokens import Pieces
from rlsys.config.paths import expanded
from rlsys.errors import RlsysError
from rlsys.run_folder.reading import RunFolder, read_run


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the runs to show and where to write the page."""
    parser.description = "Write one HTML file about a run, or about two side by side; it needs no network."
    parser.add_argument("folder", type=expanded, metavar="RUN", help="folder of a run, finished or not")
    parser.add_argument("other", type=expanded, nargs="?", metavar="RUN_B", help="a second run to compare it with")
    parser.add_argument(
        "--output", type=expanded, metavar="FILE", help="file to write (default: report.html in the first run's folder)"
    )
    parser.add_argument(
        "--max-rollouts",
        type=at_least(0),
        default=10_000,
        metavar="N",
        help="rollouts in the page, of both runs (10000)",
    )


def run(options: argparse.Namespace) -> None:
    """Write the page and print where it is."""
    runs = [read_run(path) for path in (options.folder, options.other) if path is not None]
    output = (options.output or runs[0].path / "report.html").expanduser()
    if output.is_dir():
        raise RlsysError(f"--output {output} is a folder: name a file, such as {output / 'report.html'}")
    if not output.parent.is_dir():
        raise RlsysError(f"--output {output}: no such folder: {output.parent.resolve()}")
    rollouts, notes = [], []
    for run in runs:
        kept, told = run_rollouts(run, options.max_rollouts // len(runs))
        rollouts.append(kept)
        notes.append(told)
        for note in told:
            print(f"{run.name}: {note}")
    output.write_text(render(runs, rollouts, notes), encoding="utf-8")
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB")


def run_rollouts(run: RunFolder, limit: int) -> tuple[Rollouts, list[str]]:
    """At most `limit` rollouts of a run, and what the reader should know of them."""
    decode = _Decoder(run.path / "tokenizer")
    kept = collect(run.rollouts, limit, decode, pack)
    shown = len(kept.index.get("step", ()))
    notes = []
    if not run.rollouts:
        notes.append("no rollouts: the run writes none (logging.rollouts_every=0), or has not come to its first file")
    elif shown < kept.total:
        notes.append(
            f"{shown:,} of {kept.total:,} rollouts are shown, the first groups of each step; --max-rollouts shows more"
        )
    if kept.num_undecoded:
        notes.append(f"the tokens of {kept.num_undecoded:,} rollouts are not coloured: {decode.why_not}")
    return kept, notes


class _Decoder:
    """Reads ids with the tokenizer that a run left, which is loaded when the first ids come."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._pieces: Pieces | None = None
        self.why_not = "" if folder.is_dir() else f"the run has no folder {folder.name}/ to read their ids with"

    def __call__(self, ids: Sequence[int]) -> list[str] | None:
        if self._pieces is None and not self.why_not:
            from rlsys.models.resolve import load_tokenizer

            try:
                self._pieces = Pieces(load_tokenizer(str(self._folder)))
            except RlsysError as error:
                self.why_not = str(error)
        return None if self._pieces is None else self._pieces(ids)
