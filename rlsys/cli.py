"""The commands: `rlsys train`, `rlsys eval`, `rlsys report`, `rlsys watch`, `rlsys simulate`, `rlsys make-model`."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import cast

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from rlsys.config import Config, ModelBuild, TokenizerBuild
from rlsys.errors import ConfigError, RlsysError

STARTED = time.strftime("%Y%m%d-%H%M%S")
"""Names the default run folder; one for all jobs of a sweep."""

USAGE = """usage: rlsys COMMAND ...

  rlsys train [overrides]       train; overrides as in Hydra: experiment=quickstart train.num_steps=10
  rlsys eval [overrides]        greedy accuracy of model.path on data.eval
  rlsys report RUN [RUN_B]      one HTML file of a run, or of two side by side; --help says more
  rlsys watch RUN               the display of a run started elsewhere; --help says more
  rlsys simulate --help         a finished run's step time on other numbers of workers
  rlsys make-model --help       write a tiny model and tokenizer

Hydra's own flags work: --cfg job prints the configuration, --multirun runs a sweep.
"""


def main() -> None:
    """Entry point of the console command."""
    commands: dict[str, Callable[[list[str]], None]] = {
        "train": lambda rest: _hydra(_train, rest),
        "eval": lambda rest: _hydra(_eval, rest),
        "report": _report,
        "watch": _watch,
        "simulate": _simulate,
        "make-model": _make_model,
    }
    arguments = sys.argv[1:]
    if not arguments or arguments[0] not in commands:
        print(USAGE, file=sys.stderr if arguments[:1] not in (["-h"], ["--help"]) else sys.stdout)
        sys.exit(0 if arguments[:1] in (["-h"], ["--help"]) else 2)
    signal.signal(signal.SIGTERM, _interrupt)
    sys.path.insert(0, os.getcwd())  # `my_module:my_reward` beside the user is found, as with `python -m`
    try:
        commands[arguments[0]](arguments[1:])
    except RlsysError as error:
        print(f"rlsys: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        print("rlsys: interrupted; every process of this run has ended", file=sys.stderr)
        sys.exit(130)


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


def load_config(overrides: Sequence[str]) -> Config:
    """The run that `overrides` describe, without running it."""
    from hydra import compose, initialize_config_dir

    from rlsys.overrides import config_dir, normalise

    _register_schema()
    with initialize_config_dir(str(config_dir()), version_base="1.3"):
        return to_config(compose("config", overrides=normalise(overrides)))


def to_config(composed: DictConfig) -> Config:
    """Composed configuration to dataclasses."""
    return cast(Config, OmegaConf.to_object(composed))


def _register_schema() -> None:
    from hydra.core.config_store import ConfigStore

    ConfigStore.instance().store(name="schema", node=Config)


def _hydra(task: Callable[[Config, str], None], arguments: list[str]) -> None:
    """Run `task` once, or once a combination with --multirun."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import HydraException

    from rlsys.overrides import config_dir, flags_first, normalise

    _register_schema()
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
    from rlsys.preflight import check_resume, check_run_dir

    quiet_libraries()
    experiment, _, job = name.partition("/")
    base = Path(config.run_dir or Path(os.environ.get("RLSYS_RUNS", "runs")) / experiment / STARTED)
    run_dir = (base / job if job else base).resolve()
    check_resume(config.resume, config.run_dir)
    check_run_dir(run_dir, config.resume)
    config = dataclasses.replace(config, run_dir=str(run_dir))
    display = Display(config.train.num_steps)

    from rlsys.prepare import prepare

    prepared = prepare(config, display.say)
    run_dir.mkdir(parents=True, exist_ok=True)
    OmegaConf.save(OmegaConf.structured(prepared.config), run_dir / "config.yaml")
    display.say(f"run {run_dir}: starting Ray, engines and learner (about half a minute)")

    from rlsys.build import open_run
    from rlsys.train import train

    with display, open_run(prepared, run_dir, display) as run:
        train(run)
    display.say(f"done: metrics, rollouts and checkpoints in {run_dir}")


def _eval(config: Config, name: str) -> None:
    from rlsys.evaluation_run import evaluation_run
    from rlsys.prepare import prepare

    quiet_libraries()
    prepared = prepare(config, training=False)
    result = evaluation_run(prepared)
    print(json.dumps({"model": prepared.model_path, "data": config.data.eval, **result}, indent=2))


def _make_model(arguments: list[str]) -> None:
    from rlsys.models.tiny import ARCHITECTURES, build_model, build_tokenizer, save_model

    defaults = ModelBuild()
    parser = argparse.ArgumentParser("rlsys make-model", description="Write a tiny model and its tokenizer.")
    parser.add_argument("output", type=Path, help="folder to write")
    parser.add_argument("--architecture", choices=sorted(ARCHITECTURES), default=defaults.architecture)
    parser.add_argument("--tied", action=argparse.BooleanOptionalAction, default=defaults.tie_word_embeddings)
    parser.add_argument("--corpus", type=Path, help="text file: a byte-level BPE tokenizer is trained on its lines")
    parser.add_argument("--vocab-size", type=int, default=TokenizerBuild().vocab_size, help="of the BPE tokenizer")
    parser.add_argument("--seed", type=int, default=0)
    sizes = ("hidden_size", "num_layers", "num_heads", "num_kv_heads", "intermediate_size", "max_context")
    for size in sizes:
        parser.add_argument(f"--{size.replace('_', '-')}", type=int, default=getattr(defaults, size))
    options = parser.parse_args(arguments)
    quiet_libraries()
    tokenizer_config = TokenizerBuild(kind="bpe" if options.corpus else "chars", vocab_size=options.vocab_size)
    lines = options.corpus.read_text(encoding="utf-8").splitlines() if options.corpus else []
    build = ModelBuild(
        architecture=options.architecture,
        tie_word_embeddings=options.tied,
        tokenizer=tokenizer_config,
        **{size: getattr(options, size) for size in sizes},
    )
    tokenizer = build_tokenizer(tokenizer_config, lines)
    model = build_model(build, tokenizer, options.seed)
    save_model(model, tokenizer, options.output)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    print(f"{options.output}: {options.architecture}, {parameters:,} parameters, vocabulary {len(tokenizer)}")


def _report(arguments: list[str]) -> None:
    from rlsys.report.command import report

    report(arguments)


def _watch(arguments: list[str]) -> None:
    from rlsys.report.watch import watch

    watch(arguments)


def _simulate(arguments: list[str]) -> None:
    from rlsys.simulate.command import simulate

    simulate(arguments)


def quiet_libraries() -> None:
    """Keep the libraries' progress bars and notices out of the way; warnings and errors stay."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    # The driver computes nothing on a device; workers get their own setting (rlsys/build.py).
    os.environ.setdefault("DS_ACCELERATOR", "cpu")
    logging.getLogger("datasets").setLevel(logging.ERROR)
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()


if __name__ == "__main__":
    main()
