"""The reference of all options, made from the schema and the presets.

Write it again after a change of either (a test compares the two):

    python -m rlsys.config.reference > docs/configuration.md
"""

from __future__ import annotations

import dataclasses
import inspect
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from rlsys.config.option import BOUNDS, AnyNeed, Need, Option, needs_of, options
from rlsys.config.overrides import config_dir, groups, presets
from rlsys.config.schema import Config

HEAD = """\
# Configuration

Generated from `rlsys/config/schema.py` and `configs/` by `python -m rlsys.config.reference > docs/configuration.md`.

A run is described by options. Each has a default; an experiment or preset changes some of them, and the command line
has the last word:

```bash form
rlsys train experiment=quickstart train.num_steps=50 algorithm=dapo 'rewards=[{name: exact_match}]'
```

- `rlsys train ... --cfg job` prints the options that a command line comes to, `--multirun` trains one run per
  combination of values (`seed=0,1`), `rlsys train --help` lists Hydra's other flags.
- `experiment=path/to/file.yaml` takes an experiment of your own: options as in `configs/experiment/`, under the line
  `# @package _global_`.
- A value with other characters than letters, digits and `-_./\\+:$%*@?|` is quoted twice, for Hydra and for the shell:
  `'data.system_prompt="Put it in \\boxed{}"'`. An override that cannot be read is answered with its quoted form.
- Options of functions are set like any other: `algorithm.policy_loss.clip_low=0.1`, `data.options.max_operand=9`.
- `~data` takes an experiment's choice of a preset away again.
- `null` is no value; an option takes it where its type says so. Numbers must be finite. The bounds of `critic` and
  `reference` are checked only when the run starts these roles.
- An option or a section that *needs* something has no effect without it. The table at a run's start lists the options
  that were set in vain, and a warning names those that were set on the command line. (`rlsys eval` evaluates whatever
  `eval.every` is.)
- Files may be named with `~`, and become absolute before the run starts.
"""


def reference() -> str:
    """Return the reference as Markdown: every option by section, then every preset with what it sets."""
    parts = [HEAD, "## Options\n"]
    for prefix, section, needs in _sections(Config()):
        own = [option for option in options(section, prefix) if option.key.count(".") == prefix.count(".")]
        if own:
            parts.append(f"### {prefix.rstrip('.') or 'top level'}\n")
            parts.append(f"{inspect.getdoc(type(section))}\n")
            parts += [f"Needs {_needed(needs)}.\n"] if needs else []
            parts.append(_table(own))
    parts.append("## Presets\n")
    parts.append("`GROUP=NAME` chooses one. Only `algorithm` has a default: `grpo`.\n")
    for group in groups():
        if presets(group):
            parts.append(f"### {group}\n")
            parts += [_preset(config_dir() / group / f"{name}.yaml") for name in presets(group)]
    empty = ", ".join(f"`{group}`" for group in groups() if not presets(group))
    parts.append("### Presets of your own\n")
    parts.append("A file `FOLDER/GROUP/NAME.yaml` is chosen with `--config-dir FOLDER GROUP=NAME`, in these groups and")
    parts.append(f"in those that have no preset here: {empty}.\n")
    return "\n".join(parts)


def _sections(
    config: Any, prefix: str = "", needs: tuple[Need | AnyNeed, ...] = ()
) -> Iterator[tuple[str, Any, tuple[Need | AnyNeed, ...]]]:
    """Yield every section of a dataclass instance with its keys' prefix and what it needs, the outer ones first."""
    yield prefix, config, needs
    for one in dataclasses.fields(config):
        value = getattr(config, one.name)
        if dataclasses.is_dataclass(value):
            yield from _sections(value, f"{prefix}{one.name}.", (*needs, *needs_of(one, prefix)))


def _table(rows: list[Option]) -> str:
    lines = ["| option | type | default | values | meaning |", "|---|---|---|---|---|"]
    for option in rows:
        meaning = option.rule.help + (f" (needs {_needed(option.needs)})" if option.needs else "")
        cells = (f"`{option.key}`", f"`{option.type}`", f"`{_plain(option.value)}`", _values(option), meaning)
        lines.append(f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |")
    return "\n".join(lines) + "\n"


def _needed(needs: Sequence[Need | AnyNeed]) -> str:
    return " and ".join(f"`{need}`" for need in needs)


def _values(option: Option) -> str:
    """Return the choices or bounds of an option in a few characters."""
    if option.rule.choices:
        return ", ".join(f"`{choice}`" for choice in option.rule.choices)
    return ", ".join(f"{BOUNDS[name][2]} {bound}" for name, bound in option.rule.bounds().items())


def _plain(value: Any) -> str:
    """Return a value as it is written on the command line."""
    return json.dumps(value).replace('"', "") if value != "" else '""'


def _preset(path: Path) -> str:
    """Return a preset's comment as text, and what it sets as YAML."""
    lines = path.read_text(encoding="utf-8").splitlines()
    head = next(number for number, line in enumerate(lines) if not line.startswith("#"))
    comment = [line.removeprefix("#").strip() for line in lines[:head] if "@package" not in line]
    return "\n".join(
        [f"**{path.parent.name}={path.stem}**: {' '.join(comment)}", "", "```yaml", *lines[head:], "```", ""]
    )


if __name__ == "__main__":
    print(reference(), end="")
