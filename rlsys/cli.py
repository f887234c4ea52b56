"""The console command `rlsys`: one parser for all commands; a command's module is imported only when it is used."""

from __future__ import annotations

import argparse
import importlib
import os
import signal
import sys
from collections.abc import Sequence

from rlsys.errors import RlsysError
from rlsys.runtime.interrupt import raise_interrupt
from rlsys.runtime.logs import log_to_terminal

# Each command: the module that declares its arguments and does its work, and a line of help.
COMMANDS = {
    "train": ("rlsys.commands.train", "train a policy"),
    "eval": ("rlsys.commands.evaluate", "accuracy, mean@k and pass@k of a model or run on held-out data"),
    "watch": ("rlsys.commands.watch", "show the display of a run that was started elsewhere"),
    "scale": ("rlsys.commands.scale", "change the number of engines of a run while it goes on"),
    "report": ("rlsys.commands.report.command", "write one HTML file about a run, or about two side by side"),
    "replay": ("rlsys.commands.replay", "compute one step of a run again, and compare it bit for bit"),
    "export": ("rlsys.commands.export.command", "write a checkpoint as a Hugging Face folder with a model card"),
    "import": (
        "rlsys.commands.importers.import_command",
        "turn a recipe of TRL, open-r1, axolotl, EasyR1, verl or OpenRLHF into an experiment",
    ),
    "serve-reward": ("rlsys.commands.serve.command", "serve a reward function over HTTP"),
    "simulate": ("rlsys.commands.simulate.command", "predict a run's step time with other numbers of workers"),
    "doctor": ("rlsys.commands.doctor.command", "check the machine or cluster, and plan a run before it starts"),
    "make-model": ("rlsys.commands.make_model", "write a tiny model and its tokenizer"),
}
EPILOG = """\
`rlsys COMMAND --help` explains a command. Completion in bash and zsh, overrides included:
  eval "$(register-python-argcomplete rlsys)"
"""


def main() -> None:
    """Run the console command; print errors meant for people without a traceback."""
    signal.signal(signal.SIGTERM, raise_interrupt)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # a shell's background job ignores it
        signal.signal(signal.SIGINT, raise_interrupt)
    log_to_terminal(errors=sys.argv[1:2] not in (["train"], ["watch"]))  # of the others stdout is for results
    try:
        execute(sys.argv[1:])
    except RlsysError as error:
        print(f"rlsys: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        ended = "; every process of this run has ended" if sys.argv[1:2] in (["train"], ["eval"]) else ""
        print(f"rlsys: interrupted{ended}", file=sys.stderr)
        # Whoever was interrupted in the `exec` of a text, as dataclasses are made, would be ended by Python with SIGINT
        # and not with this code (`python -m`): it forgets the interruption with the next text.
        exec("pass")
        sys.exit(130)


def execute(arguments: Sequence[str]) -> None:
    """Parse the arguments, as `["watch", "runs/mine"]`, and run the command. Raise RlsysError where it fails."""
    words = os.environ.get("COMP_LINE", "").split()[1:] or arguments  # the shell asks for completions in COMP_LINE
    parser, command = _parser(words[0] if words else "")
    if "_ARGCOMPLETE" in os.environ:
        import argcomplete

        argcomplete.autocomplete(parser)
    options, rest = parser.parse_known_args(arguments)
    # argparse leaves overrides that stand behind a flag; anything else that is left is a mistake.
    if rest and (command is None or "overrides" not in options or any(text.startswith("-") for text in rest)):
        (command or parser).error(f"unrecognized arguments: {' '.join(rest)}")
    if "overrides" in options:
        options.overrides += rest
    options.execute(options)


def _parser(name: str) -> tuple[argparse.ArgumentParser, argparse.ArgumentParser | None]:
    """Return the parser of all commands, and that of the command `name`, the only one with its arguments declared."""
    parser = argparse.ArgumentParser(
        "rlsys",
        description="Distributed reinforcement learning for language models.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for command, (module, text) in COMMANDS.items():
        made = commands.add_parser(command, help=text, formatter_class=argparse.RawDescriptionHelpFormatter)
        if command == name:  # the others are only listed
            implementation = importlib.import_module(module)
            implementation.add_arguments(made)
            made.set_defaults(execute=implementation.run)
    return parser, commands.choices.get(name)


if __name__ == "__main__":
    main()
