"""Results of checks of a machine, for the table of `rlsys doctor` and the start of `rlsys train`."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from rlsys.errors import ConfigError, RlsysError

logger = logging.getLogger(__name__)


class Level(StrEnum):
    """How good or bad a result is."""

    OK = "ok"
    NOTE = "note"  # worth knowing; nothing to do
    WARN = "warn"  # a run may fail or be slow
    FAIL = "FAIL"  # no run can start


@dataclass(frozen=True)
class Finding:
    """The result of one check: what was looked at, what was found, and what to do about it."""

    name: str
    level: Level
    found: str
    remedy: str = ""

    @property
    def text(self) -> str:
        """What was found, and the remedy."""
        return f"{self.found}: {self.remedy}" if self.remedy else self.found


def found_by(name: str, check: Callable[[], str]) -> Finding:
    """Return the finding of a check that returns what is in order, and raises RlsysError for what is not."""
    try:
        return Finding(name, Level.OK, check())
    except RlsysError as error:
        return Finding(name, Level.FAIL, str(error))


def report(findings: Sequence[Finding]) -> None:
    """Log the doubtful findings as warnings. Raise ConfigError with all the failing ones."""
    for finding in findings:
        if finding.level == Level.WARN:
            logger.warning("%s: %s", finding.name, finding.text)
    failed = [f"{finding.name}: {finding.text}" for finding in findings if finding.level == Level.FAIL]
    if failed:
        raise ConfigError("\n".join(failed))
