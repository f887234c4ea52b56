"""`rlsys import FILE`."""

from __future__ import annotations

import argparse
import os
import shlex
import sys

from rich.console import Console

from rlsys.commands.importers.choose import DIALECTS, choose, options_of
from rlsys.commands.importers.experiment_file import check_written, experiment, missing_trackers
from rlsys.commands.importers.recipe import RunSize
from rlsys.commands.importers.recipe_file import read
from rlsys.commands.importers.summary import show
from rlsys.commands.importers.translate import translate
from rlsys.commands.numbers import at_least
from rlsys.commands.output import output_file
from rlsys.config.overrides import EXPERIMENT_SUFFIXES
from rlsys.config.paths import expand
from rlsys.errors import ConfigError

VERSIONS = "; ".join(
    f"{name}: of {dialect.versions_of}, {', '.join(dialect.versions)} (default {dialect.default_version})"
    for name, dialect in DIALECTS.items()
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the recipe, whose it is, and what it does not say itself."""
    parser.description = "Turn a recipe of another project into an experiment; nothing is left out silently."
    parser.add_argument("file", type=expand, help="YAML, JSON, a shell script, or a list of flags")
    parser.add_argument("--dialect", help=f"{'|'.join(DIALECTS)}; guessed from the options when not given")
    parser.add_argument("--version", help=f"release whose defaults unset options have. {VERSIONS}")
    parser.add_argument(
        "--num-processes", type=at_least(1), help="processes of the recipe's trainer (default: as in the file, or 1)"
    )
    parser.add_argument("--num-rows", type=at_least(1), help="rows of the training data: turns epochs into steps")
    parser.add_argument(
        "--output", type=output_file, metavar="FILE", help="file to write (default: NAME.rlsys.yaml beside the recipe)"
    )


def run(options: argparse.Namespace) -> None:
    """Print the lists and write the experiment. Raise ConfigError for a recipe that could not run."""
    output = options.output or options.file.with_name(f"{options.file.name.partition('.')[0]}.rlsys.yaml")
    if output.suffix not in EXPERIMENT_SUFFIXES:
        raise ConfigError(f"--output {output}: an experiment's file ends in {' or '.join(EXPERIMENT_SUFFIXES)}")
    if output.resolve() == options.file.resolve():
        raise ConfigError(f"--output {output} is the recipe itself: choose another file")
    source = read(options.file)
    choice = choose(source, options.dialect, options.version)
    size = RunSize(num_processes=options.num_processes, num_rows=options.num_rows)
    result = translate(options_of(source, choice.dialect), choice.dialect, choice.version, size)
    result.remarks[:0] = source.remarks
    missing = missing_trackers(result.written.get("logging.trackers", ()))
    result.remarks += missing.values()
    text = experiment(result, options.file.name)
    # Into a file or a pipe rich would write 80 columns, too few for a table of options.
    console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)
    console.print(f"{', '.join(map(str, source.files))}: {choice.dialect.name} ({choice.because})", highlight=False)
    show(result, console)
    check_written(text, without_trackers=bool(missing))
    output.write_text(text, encoding="utf-8")
    console.print(f"wrote {output}; run it with", highlight=False)
    console.print(f"  rlsys train {shlex.quote(f'experiment={output}')}", highlight=False, soft_wrap=True)
    console.print(
        "and, on GPUs, with cluster.num_gpus, learner.num_workers and rollout.num_workers as the machine has them.",
        highlight=False,
    )
