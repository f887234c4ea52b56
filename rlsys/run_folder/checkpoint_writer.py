"""The writer of checkpoints: beside, synced with a manifest, renamed; then the oldest are removed.

The file `lock` of the run's folder keeps other writers away. Hidden names (`.step-000010.partial`, `.removed`,
`.converted`) are what is being written, removed or converted; the next checkpoint clears what a cut-off left of them.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
import re
import shutil
from collections.abc import Awaitable, Callable, Collection
from dataclasses import asdict
from pathlib import Path

from rlsys.errors import NoRoomError
from rlsys.run_folder.checkpoint import FORMAT, RunState, checkpoint_entries, checkpoint_path, damage_of, step_of
from rlsys.run_folder.layout import STATE
from rlsys.run_folder.manifest import seal
from rlsys.run_folder.room import naming_full_disk
from rlsys.run_folder.whole_file import sync, write_whole

HIDDEN = re.compile(r"\.step-\d{6,}\.(partial|removed|converted)(-\d+)?")

logger = logging.getLogger(__name__)


async def save(
    run_dir: Path,
    state: RunState,
    write: Callable[[str], Awaitable[None]],
    *,
    keep: int,
    also: Collection[int] = (),
) -> Path:
    """Write a new checkpoint, then remove older ones; return its folder.

    The files are checked and synced in a thread, so the driver's other work goes on.

    Args:
        run_dir: the run's folder.
        state: what is saved besides the files of `write`.
        write: fills the folder that it is given: weights, and whatever else belongs to the checkpoint.
        keep: how many checkpoints stay, the newest ones; at least the new one.
        also: steps whose checkpoints stay besides.

    Raises:
        NoRoomError: the disk is full. What was written of the new checkpoint is removed, the others stay.
    """
    folder = checkpoint_path(run_dir, state.step)
    partial = await asyncio.to_thread(_begin, folder)
    try:
        await write(str(partial))
        await asyncio.to_thread(_finish, partial, folder, state)
    except NoRoomError:
        await asyncio.to_thread(_clear, partial)
        raise
    await asyncio.to_thread(_remove_older, run_dir, state.step, keep, also)
    return folder


def set_aside_after(run_dir: Path, step: int) -> None:
    """Rename the checkpoints of later steps than the one that the run starts from: `step-000020-aside`.

    They are of another try, or damaged. Under their own names they would be taken for this run's later on.
    """
    for path in checkpoint_entries(run_dir):
        if step_of(path) > step:
            try:
                aside = path.rename(_free(path.with_name(f"{path.name}-aside")))
                logger.warning("the run goes on after step %d: %s is kept as %s", step, path, aside.name)
            except OSError as error:
                logger.warning("the run goes on after step %d, and %s stays where it is: %s", step, path, error)


def _begin(folder: Path) -> Path:
    """Return an empty folder to write a checkpoint into, after clearing what cut-off writers left."""
    root = folder.parent
    with naming_full_disk(root):
        root.mkdir(parents=True, exist_ok=True)
        sync(root.parent)
        for path in root.iterdir():
            if HIDDEN.fullmatch(path.name):
                _clear(path)
        partial = _free(root / f".{folder.name}.partial")
        partial.mkdir()
    return partial


def _finish(partial: Path, folder: Path, state: RunState) -> None:
    """Write state and manifest, sync everything, and give the folder its name."""
    with naming_full_disk(partial):
        write_whole(partial / STATE, json.dumps({"format": FORMAT, **asdict(state)}))
        seal(partial)
        old = _hide(folder) if folder.exists() else None  # a leftover that could not be set aside
        partial.rename(folder)
        sync(folder.parent)
    if old is not None:
        _clear(old)


def _remove_older(run_dir: Path, step: int, keep: int, also: Collection[int]) -> None:
    """Remove the checkpoints before the newest `keep` whole ones up to `step`, but for the steps in `also`."""
    until = [path for path in checkpoint_entries(run_dir) if step_of(path) <= step]
    whole = [path for path in until if damage_of(path, content=False) is None]
    first = step_of(whole[-max(keep, 1) :][0])  # the new one is among them; without `max`, keep=0 would give [:]
    for path in until:
        if step_of(path) < first and step_of(path) not in also:
            try:
                _clear(_hide(path))
            except OSError as error:
                logger.warning("the old checkpoint %s stays: %s", path, error)


def _hide(path: Path) -> Path:
    """Give a checkpoint a name that no reader takes for one."""
    return path.rename(_free(path.with_name(f".{path.name}.removed")))


def _clear(path: Path) -> None:
    """Remove a file or folder; what cannot be removed now, as a file that NFS holds open, is left for the next time."""
    try:
        shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    except OSError as error:
        logger.warning("%s is not removed yet: %s", path, error)


def _free(path: Path) -> Path:
    """Return `path`, or with a number behind it where that exists: `path-2`."""
    if not path.exists():
        return path
    return next(free for n in itertools.count(2) if not (free := path.with_name(f"{path.name}-{n}")).exists())
