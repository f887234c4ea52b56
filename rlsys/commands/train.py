"""`rlsys train`: starts the run, or all runs of a sweep, that a command line describes."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from rlsys.commands.libraries import quiet_libraries
from rlsys.commands.overrides import add_overrides
from rlsys.config.compose import Job, compose_jobs
from rlsys.config.effects import without_effect
from rlsys.config.overrides import keys_set, names_a_run, normalise
from rlsys.config.paths import absolute, expand
from rlsys.errors import ConfigError, RlsysError
from rlsys.runtime.garbage import collected_later

if TYPE_CHECKING:  # `rlsys train --help` and completion load no torch
    from rlsys.preflight.prepared import Prepared
    from rlsys.runtime.findings import Finding
    from rlsys.runtime.preimport import Preimport

logger = logging.getLogger(__name__)

DESCRIPTION = """\
Train a policy. Every option is set as key=value, in Hydra's grammar:

  rlsys train experiment=quickstart train.num_steps=50
  rlsys train model.path=Qwen/Qwen2.5-0.5B-Instruct data.train=my.jsonl data.eval=null reward=math_answer
  rlsys train experiment=my.yaml run_dir=runs/mine resume=auto checkpoint.every=20

experiment=NAME chooses a whole run from configs/experiment/, experiment=path/to/file.yaml one of your own.
--dry-run checks everything, shows what the run would use, and stops before Ray starts.
docs/configuration.md lists every option, with its default and its bounds.
"""

# Hydra's flags, by the names that argparse gives their values.
FLAGS = (
    *("cfg", "package", "resolve", "multirun", "run", "config_dir", "config_name", "config_path", "info"),
    *("experimental_rerun", "hydra_help", "version"),
)

NOTHING_NAMED = """\
rlsys train: no model, data or experiment is given. Give an experiment, or your model and data:
  rlsys train experiment=quickstart
  rlsys train model.path=Qwen/Qwen2.5-0.5B-Instruct data.train=my.jsonl data.eval=null"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the overrides and Hydra's own flags."""
    parser.description = DESCRIPTION
    add_overrides(parser)
    parser.add_argument(
        "--dry-run",
        action="store_true",
        help="check everything, prepare model and data, show what the run uses, and stop before Ray starts",
    )
    hydra = parser.add_argument_group("flags of Hydra")
    one_of = hydra.add_mutually_exclusive_group()
    one_of.add_argument(
        "--cfg",
        "-c",
        choices=("job", "hydra", "all"),
        help="print the configuration instead of training (job: the run's)",
    )
    hydra.add_argument("--package", "-p", metavar="SECTION", help="with --cfg: print this section only, as train")
    hydra.add_argument("--resolve", action="store_true", help="with --cfg: fill in ${...} first")
    one_of.add_argument(
        "--multirun", "-m", action="store_true", help="train one run per combination of values (seed=0,1)"
    )
    one_of.add_argument("--run", "-r", action="store_true", help="train one run (the default)")
    hydra.add_argument(
        "--config-dir",
        "-cd",
        type=_folder,
        metavar="FOLDER",
        help="folder with presets of your own, searched besides configs/",
    )
    hydra.add_argument("--config-name", "-cn", metavar="NAME", help="another top file than config")
    hydra.add_argument(
        "--config-path", "-cp", type=_folder, metavar="FOLDER", help="another folder of presets than configs/"
    )
    one_of.add_argument(
        "--info",
        "-i",
        nargs="?",
        const="all",
        metavar="WHAT",
        choices=("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
        help="print how the configuration is composed: all, config, defaults, defaults-tree, plugins or searchpath",
    )
    hydra.add_argument(
        "--experimental-rerun", type=_file, metavar="FILE", help="train again from a configuration that Hydra pickled"
    )
    hydra.add_argument("--hydra-help", action="store_true", help="print Hydra's own help")
    one_of.add_argument("--shell-completion", "-sc", action="store_true", help="refused: see rlsys --help for ours")
    hydra.add_argument("--version", action="store_true", help="print Hydra's version")


def run(options: argparse.Namespace) -> None:
    """Train every run that the command line describes, one after the other.

    Raises:
        RlsysError: a run failed; of a sweep, after the others have been trained.
    """
    with collected_later():
        _run(options)


def _run(options: argparse.Namespace) -> None:
    if options.shell_completion:
        raise ConfigError("--shell-completion is Hydra's and does not know rlsys: `rlsys --help` has the line for ours")
    folders = [folder for folder in (options.config_dir, options.config_path) if folder is not None]
    only_prints = (options.cfg, options.info, options.hydra_help, options.version)
    if options.dry_run and any(only_prints):
        raise ConfigError("--dry-run and a flag that only prints, such as --cfg, are both given: keep one of them")
    another_top = (options.config_name, options.config_path, options.experimental_rerun)
    if not any((*only_prints, *another_top)) and not names_a_run(options.overrides):
        normalise(options.overrides, sweeps=options.multirun, folders=folders)  # a wrong key is the better answer
        print(NOTHING_NAMED, file=sys.stderr)
        sys.exit(2)
    found = compose_jobs(options.overrides, flags=_flags(options), sweeps=options.multirun, folders=folders)
    train = dry_run if options.dry_run else train_job
    if len(found) == 1:
        train(found[0])
        return
    from rlsys.preflight.checks import check_config, check_machine

    for job in found:
        check_config(job.config)  # no job of a sweep starts before all are checked
        check_machine(job.config)
    _train_all(found, train)


def _train_all(jobs: Sequence[Job], train: Callable[[Job], object]) -> None:
    """Train the runs of a sweep one after the other; raise RlsysError at the end, naming those that failed."""
    common = set(jobs[0].overrides).intersection(*(job.overrides for job in jobs)) if jobs else set()
    failed = []
    for job in jobs:
        try:
            train(job)
        except Exception as error:  # whatever it is, it is this run's: the others are trained all the same
            own = " ".join(text for text in job.overrides if text not in common)
            text = str(error) if isinstance(error, RlsysError) else f"{type(error).__name__}: {error}"
            failed.append(f"run {job.number} ({own}): {text}")
            logger.error("%s; the sweep goes on", failed[-1], exc_info=None if isinstance(error, RlsysError) else error)
    if failed:
        raise RlsysError("\n".join([f"{len(failed)} of {len(jobs)} runs failed:", *failed]))


def _flags(options: argparse.Namespace) -> list[str]:
    """Return Hydra's flags as Hydra is to read them, with `~` in names of folders expanded."""
    flags = []
    for name in FLAGS:
        value = getattr(options, name)
        flags += [] if value in (None, False) else [f"--{name.replace('_', '-')}"]
        flags += [str(value)] if value not in (None, False, True) else []
    return flags


def _folder(text: str) -> str:
    """Return a folder's absolute name, or a place inside a package (`pkg://...`) as it is."""
    if not ("://" in text or expand(text).is_dir()):
        raise argparse.ArgumentTypeError(f"no such folder: {absolute(text)}")
    return text if "://" in text else absolute(text)


def _file(text: str) -> str:
    if not expand(text).is_file():
        raise argparse.ArgumentTypeError(f"no such file: {absolute(text)}")
    return absolute(text)


def dry_run(job: Job) -> None:
    """Check and prepare one run and show what it would use; raise RlsysError for what `train_job` would refuse."""
    _prepared(job)
    logger.info("dry run: everything that can be checked before Ray starts is in order")


def train_job(job: Job) -> Path:
    """Check, prepare and train one run; return its folder. Raise RlsysError, before Ray starts where possible."""
    from rlsys.build.environment import worker_imports
    from rlsys.run_folder.folder import check_run_dir
    from rlsys.run_folder.lock import locked, new_folder
    from rlsys.run_folder.mirror import mirror_of
    from rlsys.run_folder.resume import check_fixed_options
    from rlsys.runtime.preimport import Preimport

    mirror = mirror_of(job.config)
    with Preimport(worker_imports(job.config)) as preimport:
        prepared, table = _prepared(job)
        # Nothing is written before everything has been checked.
        run_dir = folder_of(job)
        run_dir = run_dir if job.config.run_dir is not None else new_folder(run_dir)
        prepared = replace(prepared, config=replace(prepared.config, run_dir=str(run_dir)))
        with locked(run_dir):
            check_run_dir(run_dir, job.config.resume)  # again: another run may have come and gone meanwhile
            if mirror is not None and job.config.resume == "auto" and mirror.fetch(run_dir) is not None:
                check_fixed_options(prepared, run_dir)
            _train(prepared, run_dir, table, preimport)
    return run_dir


def _prepared(job: Job) -> tuple[Prepared, str]:
    """Check and prepare a run; show the table of what it uses, and return it as text too."""
    from rlsys.build.machine import machine_findings
    from rlsys.build.start_table import start_table
    from rlsys.metrics.display import show_table, table_text
    from rlsys.preflight.prepare import prepare
    from rlsys.runtime.findings import report

    quiet_libraries()
    run_dir = folder_of(job)
    # The cheap checks come first: preparing may build a model, which takes minutes.
    check_folder(job)
    report(machine_findings(job.config, run_dir))
    prepared = prepare(job.config)
    check_prepared(prepared, run_dir)
    rows = start_table(prepared)
    show_table("what this run uses" if job.number is None else f"what run {job.number} uses", rows)
    report(_memory_findings(prepared))
    given = keys_set(job.overrides)
    for key, missing in without_effect(job.config).items():
        if key in given:
            logger.warning("%s is set on the command line and has no effect without %s", key, missing)
    return prepared, table_text(rows)


def check_folder(job: Job) -> None:
    """Raise ConfigError when a run could not write its folder, or would write over another's."""
    from rlsys.preflight.checks import check_resume
    from rlsys.run_folder.folder import check_run_dir
    from rlsys.run_folder.lock import check_free
    from rlsys.run_folder.mirror import mirror_of

    run_dir, is_named = folder_of(job), job.config.run_dir is not None
    check_resume(job.config.resume, job.config.run_dir)
    check_free(run_dir if is_named else run_dir.parent)
    if is_named:
        check_run_dir(run_dir, job.config.resume)
    mirror = mirror_of(job.config)
    if mirror is not None:
        mirror.check(job.config.resume)


def check_prepared(prepared: Prepared, run_dir: Path) -> None:
    """Raise ConfigError when a prepared run could not continue its folder's checkpoint, or write its own."""
    from rlsys.preflight.saving import check_room
    from rlsys.run_folder.resume import check_fixed_options

    check_fixed_options(prepared, run_dir)
    check_room(prepared, run_dir)


def _memory_findings(prepared: Prepared) -> list[Finding]:
    """Compare the memory that the run is predicted to need with this machine's, where it runs on its CPUs alone."""
    from rlsys.build.memory import memory_findings
    from rlsys.config.cluster_address import cluster_address
    from rlsys.runtime.limits import Limits

    return memory_findings(prepared, Limits.here()) if cluster_address(prepared.config.cluster) is None else []


def _train(prepared: Prepared, run_dir: Path, table: str, preimport: Preimport) -> None:
    """Train a prepared run in a folder that nobody else writes."""
    from rlsys.metrics.display import Display
    from rlsys.run_folder.folder import RunFolder
    from rlsys.run_folder.layout import LOGS
    from rlsys.runtime.interrupt import run_until_interrupted
    from rlsys.runtime.logs import log_to_file
    from rlsys.train import train_to_the_end

    tokenizer = prepared.tokenizer()
    folder = RunFolder.create(run_dir, prepared.config, tokenizer, start=table)
    log_to_file(run_dir / LOGS, "driver")
    logger.info("run %s: starting Ray, engines and learner", run_dir)
    display = Display(prepared.config.train.num_steps)

    def describe() -> None:
        folder.describe(prepared.config, tokenizer, start=table)  # only now: a resume may fail until here

    with display:
        run_until_interrupted(train_to_the_end(prepared, run_dir, display, preimport, on_start=describe))
    logger.info("done: metrics, rollouts and checkpoints in %s", run_dir)


def folder_of(job: Job) -> Path:
    """Return a run's folder: `run_dir` or `$RLSYS_RUNS/<experiment>/<time>`; below it one folder per run of a sweep."""
    base = job.config.run_dir or str(Path(os.environ.get("RLSYS_RUNS", "runs")) / job.name / job.started)
    return Path(absolute(base)) / ("" if job.number is None else str(job.number))
