"""Requests to a run for another number of engines: a file each, which the run answers in the file itself.

`rlsys scale` writes the file and reads it until there is a result; the run reads it and writes what is going on. Each
rewrites the file as a whole, and never both at once: the run does it from the moment at which it takes the request.
"""

from __future__ import annotations

import json
import logging
import os
import socket
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rlsys.errors import DataError
from rlsys.run_folder.layout import SCALE
from rlsys.run_folder.whole_file import write_whole

logger = logging.getLogger(__name__)
ASKED, TAKEN, DONE, REFUSED = "asked", "taken", "done", "refused"


@dataclass(frozen=True)
class ScaleRequest:
    """A request, as its file has it."""

    rollout: int  # number of engines
    state: str = ASKED
    text: str = "waiting for the run to take the request"  # what is going on, or what became of it

    def __post_init__(self) -> None:
        """Refuse what is no number of engines, as a file that somebody wrote by hand may have."""
        if not isinstance(self.rollout, int) or self.rollout < 1:
            raise ValueError(f"rollout={self.rollout!r} must be a whole number of at least 1")


class ScaleRequests:
    """The requests in one run's folder."""

    def __init__(self, run_dir: Path) -> None:
        self._folder = run_dir / SCALE

    def ask(self, rollout: int) -> Path:
        """Make a request and return its file."""
        self._folder.mkdir(exist_ok=True)
        # Names in the order of time, which is the order in which the run takes them.
        file = self._folder / f"{time.time_ns()}-{socket.gethostname()}-{os.getpid()}.json"
        write_whole(file, json.dumps(asdict(ScaleRequest(rollout))))
        return file

    def oldest(self) -> Path | None:
        """Return the file of the oldest request that the run has not taken yet; remove files without sense."""
        for file in sorted(self._folder.glob("*.json")):
            try:
                request = read(file)
            except DataError as error:
                logger.warning("removed: %s", error)
                file.unlink(missing_ok=True)
                continue
            if request is not None and request.state == ASKED:
                return file
        return None

    def clear(self) -> None:
        """Remove every request: those that a run finds at its start were made to an earlier one."""
        for file in self._folder.glob("*.json"):
            file.unlink(missing_ok=True)


def read(file: Path) -> ScaleRequest | None:
    """Return a request, or None when its file is gone. Raises DataError for a file without sense."""
    try:
        return ScaleRequest(**json.loads(file.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None
    except (ValueError, TypeError) as error:
        raise DataError(f"{file} is no request to a run: {error}") from error


def answer(file: Path, state: str, text: str) -> None:
    """Write what is going on, or what became of a request, into its file, unless it is gone."""
    request = read(file)
    if request is not None:
        write_whole(file, json.dumps(asdict(replace(request, state=state, text=text))))
