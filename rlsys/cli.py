"""The console command: training itself, and where the work of the other commands is done."""

from __future__ import annotations

import dataclasses
import importlib
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsys.config.compose import register_schema, to_config
from rlsys.config.schema import Config
from rlsys.errors import ConfigError, RlsysError

STARTED = time.strftime("%Y%m%d-%H%M%S")
"""Names the default run folder; one for all jobs of a sweep."""

USAGE = """usage: rlsys COMMAND ...

  rlsys train [overrides]       train; overrides as in Hydra: experiment=quickstart train.num_steps=10
                                (experiment=path/to/file.yaml takes a file of your own)
  rlsys eval MODEL_OR_RUN [overrides]   accuracy, mean@k and pass@k on held-out data
  rlsys watch RUN               the display of a run started elsewhere
  rlsys report RUN [RUN_B]      one HTML file of a run, or of two side by side
  rlsys export RUN [--merge]    a checkpoint as a Hugging Face folder with a model card
  rlsys import FILE             a recipe of TRL, open-r1, axolotl, EasyR1 or OpenRLHF as an experiment of ours
  rlsys serve-reward NAME       a reward function over HTTP
  rlsys simulate RUN            a finished run's step time on other numbers of workers
  rlsys make-model FOLDER       write a tiny model and tokenizer

Each but train says more with --help. Hydra's own flags work with train: --cfg job prints the configuration, --multirun
runs a sweep.
"""
COMMANDS = {
    "eval": "rlsys.commands.evaluate:evaluation",
    "watch": "rlsys.commands.watch:watch",
    "report": "rlsys.commands.report.command:report",
    "export": "rlsys.commands.export.command:export",
    "import": "rlsys.commands.importers.import_command:import_recipe",
    "serve-reward": "rlsys.commands.serve.command:serve_reward",
    "simulate": "rlsys.commands.simulate.command:simulate",
    "make-model": "rlsys.commands.make_model:make_model",
}
"""Where each command's work is done; imported when it is asked for."""
LOADS_MODELS = ("eval", "export", "make-model")


def main() -> None:
    """Entry point of the console command."""
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in ("train", *COMMANDS):
        print(USAGE, file=sys.stderr if arguments[:1] not in (["-h"], ["--help"]) else sys.stdout)
        sys.exit(0 if arguments[:1] in (["-h"], ["--help"]) else 2)
    signal.signal(signal.SIGTERM, _interrupt)
    sys.path.insert(0, os.getcwd())  # `my_module:my_reward` beside the user is found, as with `python -m`
    try:
        if arguments[0] == "train":
            _hydra(_train, arguments[1:])
        else:
            if arguments[0] in LOADS_MODELS:
                quiet_libraries()
            module, _, function = COMMANDS[arguments[0]].partition(":")
            getattr(importlib.import_module(module), function)(arguments[1:])
    except RlsysError as error:
        print(f"rlsys: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("rlsys: interrupted; every process of this run has ended", file=sys.stderr)
        sys.exit(130)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def _hydra(task: Callable[[Config, str], None], arguments: list[str]) -> None:
    """Run `task` once, or once a combination with --multirun."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    from rlsys.config.overrides import config_dir, flags_first, normalise

    register_schema()
    # Hydra prints and exits on an exception of the task; ours are carried past it.
    failures: list[BaseException] = []

    def guarded(composed: DictConfig) -> None:
        if failures:
            return
        try:
            choices = HydraConfig.get()
            job = f"/{choices.job.num}" if choices.mode.name == "MULTIRUN" else ""
            task(to_config(composed), f"{choices.runtime.choices.get('experiment', 'run')}{job}")
        except BaseException as error:
            failures.append(error)

    sys.argv = [f"rlsys {task.__name__.strip('_')}", *flags_first(normalise(arguments))]
    try:
        hydra.main(config_path=str(config_dir()), config_name="config", version_base="1.3")(guarded)()
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(str(error)) from error
    if failures and isinstance(failures[0], OmegaConfBaseException):
        raise ConfigError(str(failures[0])) from failures[0]
    if failures:
        raise failures[0]


def _train(config: Config, name: str) -> None:
    from rlsys.metrics.display import Display
    from rlsys.preflight.checks import check_resume, check_run_dir

    quiet_libraries()
    experiment, _, job = name.partition("/")
    base = Path(config.run_dir or Path(os.environ.get("RLSYS_RUNS", "runs")) / experiment / STARTED)
    run_dir = (base / job if job else base).resolve()
    check_resume(config.resume, config.run_dir)
    check_run_dir(run_dir, config.resume)
    config = dataclasses.replace(config, run_dir=str(run_dir))
    display = Display(config.train.num_steps)

    from rlsys.preflight.prepare import prepare

    prepared = prepare(config, display.say)
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.structured(prepared.config), run_dir / "config.yaml")
    prepared.tokenizer().save_pretrained(run_dir / "tokenizer")
    display.say(f"run {run_dir}: starting Ray, engines and learner (about half a minute)")

    from rlsys.build.run import open_run
    from rlsys.train import train

    with display, open_run(prepared, run_dir, display) as run:
        train(run)
    display.say(f"done: metrics, rollouts and checkpoints in {run_dir}")


def _eval(arguments: list[str]) -> None:
    quiet_libraries()
    from rlsys.commands.evaluate import evaluation

    evaluation(arguments)


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and notices out of the way; warnings and errors stay."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # The driver computes nothing on a device; workers get their own size (rlsys/build/run.py).
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("datasets").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


if __name__ == "__main__":
    main()
