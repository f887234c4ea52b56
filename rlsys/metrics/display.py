"""The progress of a run for a person: a live table on a terminal, one plain line per step elsewhere."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from rlsys.metrics.formatting import duration
from rlsys.metrics.step import STAGES, Metrics
from rlsys.runtime.logs import terminal

logger = logging.getLogger(__name__)

NUMBERS = (
    ("reward", "reward/total/mean", 3),
    ("accuracy", "eval/accuracy", 3),
    ("KL", "policy/kl_ref", 4),
    ("entropy", "policy/entropy", 3),
    ("tokens/s", "throughput/tokens_per_s", 0),
    ("step s", "time/step_s", 2),
)


class Display:
    """The progress of a run; use it as a context and call `step` after every step.

    On a terminal a table stays below the messages. Elsewhere each step is a message of its own.
    """

    def __init__(self, num_steps: int, *, live: bool | None = None) -> None:
        """Show steps out of `num_steps`; `live` overrides whether the output is a terminal."""
        self._num_steps = num_steps
        self._first_step: int | None = None
        self._started = 0.0
        self._live: Any = None
        self._warnings: Sequence[str] = ()
        console = terminal()
        if console.is_terminal if live is None else live:
            from rich.live import Live

            self._live = Live(console=console, refresh_per_second=4)

    def __enter__(self) -> Display:
        if self._live is not None:
            self._live.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        if self._live is not None:
            self._live.__exit__(*error)

    def warn(self, texts: Sequence[str]) -> None:
        """Show these warnings below the table from the next step on, in place of those before; elsewhere do nothing."""
        self._warnings = texts

    def step(self, metrics: Metrics, *, at: float | None = None) -> None:
        """Show one finished step; it ended `at`, in seconds of any one clock (default: now)."""
        step, at = int(metrics["step"] or 0), time.monotonic() if at is None else at
        if self._first_step is None or step < self._first_step:
            self._first_step, self._started = step, at
        done = step - self._first_step
        eta_s = (at - self._started) / done * (self._num_steps - step) if done else None
        if self._live is not None:
            self._live.update(self._table(metrics, eta_s))
        else:
            logger.info("%s", plain_line(metrics, self._num_steps, eta_s))

    def _table(self, metrics: Metrics, eta_s: float | None) -> Any:
        from rich.console import Group
        from rich.table import Table
        from rich.text import Text

        step = int(metrics["step"] or 0)
        title = f"rlsys  step {step}/{self._num_steps}  ETA {'-' if eta_s is None else duration(eta_s)}"
        numbers = Table(title=title, title_justify="left")
        for label, _, _ in NUMBERS:
            numbers.add_column(label, justify="right")
        numbers.add_row(*(_number(metrics.get(key), digits) for _, key, digits in NUMBERS))
        times = Table()
        for stage in STAGES:
            times.add_column(f"{stage} s", justify="right")
        times.add_row(*(_number(metrics.get(f"time/{stage}_s"), 2) for stage in STAGES))
        return Group(numbers, times, *(Text(f"warning: {text}", style="yellow") for text in self._warnings))


def show_table(title: str, rows: Sequence[tuple[str, str]]) -> None:
    """Show labels and texts in two columns: as a table on a terminal, elsewhere as lines of one message."""
    console = terminal()
    if not console.is_terminal:
        logger.info("%s\n%s", title, table_text(rows))
        return
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", show_header=False)
    for label, text in rows:
        table.add_row(label, Text(text))  # as it is: what stands in brackets is no markup
    console.print(table)


def table_text(rows: Sequence[tuple[str, str]]) -> str:
    """Return labels and texts as lines, in two columns."""
    width = max(len(label) for label, _ in rows)
    return "\n".join(f"{label:<{width}}  {text}" for label, text in rows)


def plain_line(metrics: Metrics, num_steps: int, eta_s: float | None) -> str:
    """Return one step's main metrics as one line of text."""
    parts = [f"step {int(metrics['step'] or 0)}/{num_steps}"]
    for label, key, digits in (
        ("reward", "reward/total/mean", 3),
        ("accuracy", "eval/accuracy", 3),
        ("kl", "policy/kl_ref", 4),
        ("tokens/s", "throughput/tokens_per_s", 0),
    ):
        if metrics.get(key) is not None:
            parts.append(f"{label} {_number(metrics[key], digits)}")
    times = [f"{stage} {_number(metrics[f'time/{stage}_s'], 2)}" for stage in STAGES if f"time/{stage}_s" in metrics]
    if times:
        parts.append(f"{_number(metrics.get('time/step_s'), 2)} s ({', '.join(times)})")
    if eta_s is not None:
        parts.append(f"ETA {duration(eta_s)}")
    return "  ".join(parts)


def _number(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"
