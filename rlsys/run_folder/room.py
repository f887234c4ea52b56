"""The error of a full disk, in the forms in which libraries raise it, as one that a run can wait for."""

from __future__ import annotations

import errno
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rlsys.errors import NoRoomError

FULL = (errno.ENOSPC, errno.EDQUOT)
# safetensors raises an exception of its own, which has the number in its text only.
FULL_TEXTS = tuple(f"(os error {number})" for number in FULL)


@contextmanager
def naming_full_disk(path: str | Path) -> Iterator[None]:
    """Turn the error of a disk without room, where the block writes `path`, into NoRoomError; others pass."""
    try:
        yield
    except Exception as error:
        if is_full_disk(error):
            raise NoRoomError(f"no room on the disk for {path}: {error}") from error
        raise


def is_full_disk(error: BaseException | None) -> bool:
    """Return whether an error, or one that it followed, is that of a disk or quota without room."""
    while error is not None:
        if getattr(error, "errno", None) in FULL or str(error).endswith(FULL_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False
