"""A second place for checkpoints, on any file system that fsspec knows (https://filesystem-spec.readthedocs.io).

Whole checkpoints are copied there, the manifest last: a folder without one was cut off. A run whose own folder has no
checkpoint, or an older one, begins from there.
"""

from __future__ import annotations

import logging
import shutil
import uuid
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from rlsys.config.schema import Config
from rlsys.config.secrets import without_password
from rlsys.errors import ConfigError
from rlsys.run_folder.checkpoint import NAME, checkpoints, damage_of, step_of
from rlsys.run_folder.layout import CHECKPOINTS, MANIFEST
from rlsys.run_folder.room import naming_full_disk

logger = logging.getLogger(__name__)


class Mirror:
    """The checkpoints below a URL, or in a folder."""

    def __init__(self, url: str) -> None:
        """Open nothing yet; raises ConfigError for a kind of URL that no installed package reads."""
        import fsspec

        self._url, self._shown = url, without_password(url)
        try:
            self._files, root = fsspec.core.url_to_fs(url)
        except (ValueError, ImportError) as error:
            raise ConfigError(f"checkpoint.mirror={self._shown} cannot be used: {self._said(error)}") from error
        self._root = f"{str(root).rstrip('/')}/{CHECKPOINTS}"

    def check(self, resume: str) -> None:
        """Raise ConfigError when nothing can be written there, or a new run would meet another's checkpoints."""
        probe = f"{self._root}/.written-{uuid.uuid4().hex}"
        try:
            self._files.makedirs(self._root, exist_ok=True)
            self._files.pipe_file(probe, b"")
            self._files.rm_file(probe)
            found = self.steps()
        except Exception as error:  # each file system has its own
            raise ConfigError(
                f"checkpoint.mirror={self._shown} cannot be written: {type(error).__name__}: {self._said(error)}"
            ) from error
        if found and resume != "auto":
            raise ConfigError(
                f"checkpoint.mirror={self._shown} holds {found[-1]} of another run: choose another place, or continue "
                "that run with resume=auto"
            )

    def steps(self) -> list[str]:
        """Return the names of the checkpoints that are complete there, oldest first."""
        self._files.invalidate_cache()
        if not self._files.isdir(self._root):
            return []
        names = (PurePosixPath(path).name for path in self._files.ls(self._root, detail=False))
        found = [name for name in names if NAME.fullmatch(name) and self._files.exists(self._place(name, MANIFEST))]
        return sorted(found, key=lambda name: step_of(Path(name)))

    def put(self, folder: Path, keep: Collection[str]) -> None:
        """Copy a whole checkpoint, and remove those whose names are not in `keep`."""
        self._remove(folder.name)  # of another try at the same step
        files = [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]
        for file in sorted(files, key=lambda file: (file == MANIFEST, file)):
            target = self._place(folder.name, file)
            self._files.makedirs(target.rpartition("/")[0], exist_ok=True)
            self._files.put_file(str(folder / file), target)
        for name in set(self.steps()) - {folder.name, *keep}:
            self._remove(name)

    def fetch(self, run_dir: Path) -> Path | None:
        """Copy the newest checkpoint to a run's folder, unless that has one as new; return where it is now."""
        newest = max(map(step_of, checkpoints(run_dir)), default=0)
        for name in reversed(self.steps()):
            folder = run_dir / CHECKPOINTS / name
            if step_of(folder) <= newest:
                return None
            with naming_full_disk(folder):
                reason = self._take(name, folder)
            if reason is None:
                logger.info("%s comes from checkpoint.mirror=%s", folder, self._shown)
                return folder
            logger.warning("%s in checkpoint.mirror=%s is passed over: %s", name, self._shown, reason)
        return None

    def _take(self, name: str, folder: Path) -> str | None:
        """Copy a checkpoint to a run's folder, whole or not at all; return why not."""
        partial = folder.with_name(f".{name}.partial")
        shutil.rmtree(partial, ignore_errors=True)
        self._get(name, partial)
        reason = damage_of(partial, content=True)
        if reason is None:
            shutil.rmtree(folder, ignore_errors=True)  # a damaged one, or it would be the newest
            partial.rename(folder)
        else:
            shutil.rmtree(partial)
        return reason

    def _get(self, name: str, target: Path) -> None:
        root = self._place(name, "")
        for path in self._files.find(root):
            file = target / path[len(root) :]
            file.parent.mkdir(parents=True, exist_ok=True)
            self._files.get_file(path, str(file))

    def _remove(self, name: str) -> None:
        """Remove a checkpoint, the manifest first: a reader must not take the rest for whole."""
        for path in (self._place(name, MANIFEST), self._place(name, "")):
            if self._files.exists(path):
                self._files.rm(path, recursive=True)

    def _said(self, error: Exception) -> str:
        text = str(error).replace(self._url, self._shown)
        return text.replace(urlsplit(self._url).netloc, urlsplit(self._shown).netloc) if "@" in self._url else text

    def _place(self, name: str, file: str) -> str:
        return f"{self._root}/{name}/{file}"


def mirror_of(config: Config) -> Mirror | None:
    """Return the second place that a run is configured to have."""
    return None if config.checkpoint.mirror is None else Mirror(config.checkpoint.mirror)
