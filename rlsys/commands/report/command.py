"""`rlsys report RUN [RUN_B]`: a run, or two side by side, as one HTML file that needs no network."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from rlsys.commands.numbers import at_least
from rlsys.commands.output import output_file
from rlsys.commands.report.page import compressed_json, render
from rlsys.commands.report.rollouts import Rollouts, collect
from rlsys.commands.report.tokens import TokenTexts
from rlsys.config.paths import expand
from rlsys.errors import RlsysError
from rlsys.run_folder.folder import RunFolder


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the runs to show and where to write the page."""
    parser.description = "Write one HTML file about a run, or about two side by side; it needs no network."
    parser.add_argument("folder", type=expand, metavar="RUN", help="folder of a run, finished or not")
    parser.add_argument("other", type=expand, nargs="?", metavar="RUN_B", help="a second run to compare it with")
    parser.add_argument(
        "--output",
        type=output_file,
        metavar="FILE",
        help="file to write (default: report.html in the first run's folder)",
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
    runs = [RunFolder.open(path) for path in (options.folder, options.other) if path is not None]
    for run in runs:
        _ = run.rows  # raises for a folder without metrics, before anything else is read
    output = options.output or runs[0].path / "report.html"
    shown, notes = [], []
    for run in runs:
        rollouts, run_notes = collect_rollouts(run, options.max_rollouts // len(runs))
        shown.append(rollouts)
        notes.append(run_notes)
        for note in run_notes:
            print(f"{run.name}: {note}")
    output.write_text(render(runs, shown, notes), encoding="utf-8")
    print(f"{output}: {output.stat().st_size / 2**20:.1f} MiB")


def collect_rollouts(run: RunFolder, limit: int) -> tuple[Rollouts, list[str]]:
    """Return at most `limit` rollouts of a run, and notes for the reader on what is missing."""
    decode = _Decoder(run.tokenizer)
    files = run.rollouts
    rollouts = collect(files, limit, decode, compressed_json)
    shown = len(rollouts.index.get("step", ()))
    notes = [f"from step {step} on: {text}" for step, text in run.warnings]
    if not files:
        notes.append("no rollouts: the run writes none (logging.rollouts_every=0), or has not written the first yet")
    elif shown < rollouts.total:
        notes.append(
            f"{shown:,} of {rollouts.total:,} rollouts are shown, the first groups of each step; give a higher "
            "--max-rollouts to see more"
        )
    if rollouts.num_undecoded:
        notes.append(f"the tokens of {rollouts.num_undecoded:,} rollouts are not coloured: {decode.problem}")
    return rollouts, notes


class _Decoder:
    """A decoder of token ids with the tokenizer in the run's folder, which is loaded when it is first needed."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._texts: TokenTexts | None = None
        self.problem = "" if folder.is_dir() else f"the run has no folder {folder.name}/ to decode their ids with"

    def __call__(self, ids: Sequence[int]) -> list[str] | None:
        """Return the text of each token, or None if there is no tokenizer."""
        if self._texts is None and not self.problem:
            from rlsys.models.resolve import load_tokenizer

            try:
                self._texts = TokenTexts(load_tokenizer(str(self._folder)))
            except RlsysError as error:
                self.problem = str(error)
        return None if self._texts is None else self._texts(ids)
