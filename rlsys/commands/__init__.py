"""The console commands, one module or folder each: `add_arguments` declares a command's arguments, `run` does its work.

`rlsys/cli.py` imports a command's module only when the command is used. Nothing that a run needs while it trains
belongs here.
"""
