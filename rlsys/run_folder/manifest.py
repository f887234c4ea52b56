"""The manifest of a checkpoint: size and checksum of every file in its folder, by which a damaged one is recognised.

The driver writes it, after all ranks have written their files: it alone knows when the folder is complete, and the
folder is on a file system that all of them share. On NFS a file is on the server once its writer has closed it.
"""

from __future__ import annotations

import json
import os
import zlib
from concurrent.futures import ThreadPoolExecutor
from functools import lru_cache
from pathlib import Path
from typing import Any

from rlsys.run_folder.layout import MANIFEST
from rlsys.run_folder.whole_file import sync, write_whole

NUM_THREADS = 4  # files that are read at the same time
BLOCK = 1 << 20  # bytes that are read at once


def seal(folder: Path) -> None:
    """Write all files of a folder to the disk, and a manifest of them beside them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path != folder / MANIFEST)
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        entries = list(pool.map(_sealed, files))
    for inner in (path for path in folder.rglob("*") if path.is_dir()):
        sync(inner)
    names = [path.relative_to(folder).as_posix() for path in files]
    write_whole(folder / MANIFEST, json.dumps(dict(zip(names, entries, strict=True))))  # it syncs the folder too


def find_damage(folder: Path, *, content: bool) -> str | None:
    """Return how a folder differs from its manifest, naming the file, or None when it does not.

    Files that the manifest does not list are ignored. `content=False` looks at sizes only; True reads every file. A
    file that did not change since this process read it is not read again.

    Raises:
        OSError: a file cannot be read.
        ValueError: the manifest is not one.
    """
    listed = _read(folder / MANIFEST)
    for name, entry in listed.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != entry["size"]:
            return f"{name} has {path.stat().st_size} bytes, not the {entry['size']} that were written"
    if not content:
        return None
    with ThreadPoolExecutor(NUM_THREADS) as pool:
        found = pool.map(_read_once, [folder / name for name in listed])
        wrong = [name for name, value in zip(listed, found, strict=True) if value != listed[name]["crc32"]]
    return f"{', '.join(wrong)} changed after writing: wrong checksum" if wrong else None


def size_of(folder: Path) -> int:
    """Return the bytes that the files in a folder and below take."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def checksum(path: Path) -> int:
    """Return the CRC-32 of a file: 2 GB/s per thread, a third of what BLAKE2 takes, and zlib gives up the GIL."""
    value, block = 0, memoryview(bytearray(BLOCK))
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(block):
            value = zlib.crc32(block[:size], value)
    return value


def _read_once(path: Path) -> int:
    """Return a file's checksum; a file of the same size, time and inode is not read again."""
    state = path.stat()
    return _known_checksum(path, state.st_size, state.st_mtime_ns, state.st_ino)


@lru_cache(maxsize=1024)
def _known_checksum(path: Path, *_: int) -> int:
    return checksum(path)


def _sealed(path: Path) -> dict[str, int]:
    sync(path)
    return {"size": path.stat().st_size, "crc32": checksum(path)}


def _read(path: Path) -> dict[str, dict[str, int]]:
    listed: Any = json.loads(path.read_text(encoding="utf-8"))
    try:
        return {os.fspath(name): {key: int(entry[key]) for key in ("size", "crc32")} for name, entry in listed.items()}
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError("it is not a list of files with sizes and checksums") from error
