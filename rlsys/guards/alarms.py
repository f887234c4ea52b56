"""Alarms: what the steps show that is wrong, each with its likely cause, and the reaction that is configured for it.

The sources find what a step shows: `metric_alarms` in its numbers, `signals` in its responses and rewards, and the
guards that count in a checkpoint (`nonfinite`, `missing_rewards`). All of them come to one record, `Alarm`, and
`Guards.check` acts on it.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from rlsys.config.schema import Config
from rlsys.guards.metric_alarms import History, metric_alarms
from rlsys.guards.signals import Finding, Signals
from rlsys.types import ScoredGroup

# Steps in a row in which a signal must show before it is an alarm: one step may be chance.
SIGNAL_STEPS = 3


@dataclass(frozen=True)
class Alarm:
    """An alarm about the steps up to `step`; `kind` is the same each time that it comes."""

    step: int
    name: str  # its option, under `alarms`
    kind: str
    reaction: str
    text: str


class _Streaks:
    """What one source found, counted over steps in a row.

    What enough steps in a row show is an alarm once, and again only if it went away and came back.
    """

    def __init__(self, steps: int) -> None:
        self.active: list[Alarm] = []  # those raised that still hold
        self._steps = steps
        self._in_a_row: dict[str, int] = {}

    def add(self, found: Iterable[Alarm]) -> list[Alarm]:
        """Count what a step shows; return the new alarms."""
        by_kind = {alarm.kind: alarm for alarm in found}
        self._in_a_row = {kind: self._in_a_row.get(kind, 0) + 1 for kind in by_kind}
        lasting = {kind: alarm for kind, alarm in by_kind.items() if self._in_a_row[kind] >= self._steps}
        kept = [alarm for alarm in self.active if alarm.kind in lasting]
        known = {alarm.kind for alarm in kept}
        new = [alarm for kind, alarm in lasting.items() if kind not in known]
        self.active = kept + new
        return new


class Alarms:
    """The watch over a run's steps. It raises alarms and does nothing about them."""

    def __init__(
        self,
        config: Config,
        best: Mapping[str, float] | None = None,
        earlier: Sequence[Mapping[str, float | None]] = (),
    ) -> None:
        """Watch with the configured reactions.

        Args:
            config: the run's configuration.
            best: the signals' `best` at the checkpoint that the run continues from.
            earlier: the metrics of the steps before, which later ones are compared with.
        """
        self.signals = Signals(config, best)
        self._reactions: dict[str, str] = vars(config.alarms)
        self._of_signals = _Streaks(SIGNAL_STEPS)
        self._of_metrics = [(alarm, History(alarm.keys), _Streaks(alarm.steps)) for alarm in metric_alarms(config)]
        for row in earlier:
            self._look_at_metrics(row)

        self._new: list[Alarm] = []

    def take(self) -> list[Alarm]:
        """Return the alarms that are new since the last call."""
        new, self._new = self._new, []
        return new

    @property
    def active(self) -> list[Alarm]:
        """The alarms that were raised and still hold."""
        return [*self._of_signals.active, *(one for *_, streaks in self._of_metrics for one in streaks.active)]

    def look(self, groups: Sequence[ScoredGroup], metrics: Mapping[str, float | None]) -> list[Alarm]:
        """Return the new alarms after a step.

        Args:
            groups: all groups sampled for it; without any, alarms about responses and rewards stay as they are.
            metrics: the step's; alarms about a number that is not among them stay as they are.
        """
        new: list[Alarm] = []
        if groups:
            step, num_equal = int(metrics["step"] or 0), int(metrics["groups/zero_variance"] or 0)
            new = self._of_signals.add(self._wanted(step, self.signals.find(groups, num_equal)))
        new += self._look_at_metrics(metrics)
        self._new += new
        return new

    def _look_at_metrics(self, row: Mapping[str, float | None]) -> list[Alarm]:
        new = []
        for alarm, history, streaks in self._of_metrics:
            if history.add(row):
                found = [Finding(alarm.name, alarm.kind, alarm.text)] if alarm.holds(history) else []
                new += streaks.add(self._wanted(int(row["step"] or 0), found))
        return new

    def _wanted(self, step: int, found: Iterable[Finding]) -> Iterator[Alarm]:
        for one in found:
            reaction = self._reactions[one.alarm]
            if reaction != "off":
                yield Alarm(step, one.alarm, one.kind, reaction, one.text)
