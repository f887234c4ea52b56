"""The pause of a run: while the file `paused` is in its folder it starts no step.

An alarm with the reaction `pause` makes the file, and so can a person (`touch runs/mine/paused`); who removes it lets
the run go on. Workers stay as they are meanwhile and wait without deadlines, since none of their calls is open.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from pathlib import Path

from rlsys.run_folder.layout import PAUSED
from rlsys.run_folder.whole_file import write_whole

logger = logging.getLogger(__name__)
POLL_S = 1.0
REMIND_S = 600.0  # between two messages that the run waits
BY_HAND = "somebody made this file"


class Pause:
    """The wait between two steps. It has no deadline, because a person decides when it ends; Ctrl-C ends it too."""

    def __init__(self, run_dir: Path) -> None:
        """Begin without a pause: who starts a run again that was paused wants it to go on."""
        self._file = run_dir / PAUSED
        self._file.unlink(missing_ok=True)

    async def hold(self, reasons: Sequence[str]) -> bool:
        """Wait while the file is there, which is made for `reasons`, if any; return whether there was a pause."""
        if reasons:
            write_whole(self._file, "\n".join(reasons) + "\n")
        if not self._file.exists():
            return False
        why = "; ".join(reasons) or BY_HAND
        loop = asyncio.get_running_loop()
        next_message = loop.time()
        try:
            while self._file.exists():
                if loop.time() >= next_message:
                    logger.warning("paused, until %s is removed: %s", self._file, why)
                    next_message += REMIND_S
                await asyncio.sleep(POLL_S)
        finally:  # Ctrl-C, or a worker that died meanwhile: a run that has ended is not paused
            self._file.unlink(missing_ok=True)
        logger.warning("%s was removed: going on", self._file)
        return True
