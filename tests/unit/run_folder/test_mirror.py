"""The second place of checkpoints: what is copied, what is taken for whole, and what a run begins with."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Iterator
from pathlib import Path

import fsspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.config.compose import load_config
from rlsys.errors import ConfigError
from rlsys.run_folder.checkpoint import RunState, checkpoint_path, checkpoints, newest
from rlsys.run_folder.checkpoint_writer import save
from rlsys.run_folder.layout import MANIFEST
from rlsys.run_folder.mirror import Mirror, mirror_of


def write(run_dir: Path, step: int, keep: int = 9) -> Path:
    async def weights(folder: str) -> None:
        inner = Path(folder) / "learner"
        inner.mkdir()
        (inner / "weights").write_text(f"weights of {step}")

    return asyncio.run(save(run_dir, RunState(step, 0), weights, keep=keep))


@pytest.fixture(params=["folder", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A place in a folder, and one in the memory that fsspec has for tests."""
    yield str(tmp_path / "mirror") if request.param == "folder" else f"memory://{uuid.uuid4().hex}/mirror"
    fsspec.filesystem("memory").store.clear()


def test_a_run_without_checkpoints_begins_with_the_newest_there(tmp_path: Path, url: str) -> None:
    mirror = Mirror(url)
    mirror.check("never")
    assert mirror.fetch(tmp_path / "new") is None
    for step in (10, 20):
        mirror.put(write(tmp_path / "run", step), keep=["step-000010"])
    assert mirror.steps() == ["step-000010", "step-000020"]
    assert mirror.fetch(tmp_path / "new") == checkpoint_path(tmp_path / "new", 20) == newest(tmp_path / "new")
    assert (tmp_path / "new/checkpoints/step-000020/learner/weights").read_text() == "weights of 20"
    assert mirror.fetch(tmp_path / "new") is None  # it has one as new
    assert mirror.fetch(tmp_path / "run") is None
    write(tmp_path / "new", 30)
    assert mirror.fetch(tmp_path / "new") is None
    assert not list((tmp_path / "new/checkpoints").glob(".*"))


@pytest.mark.parametrize("text", ["nosuch://me:hunter2@host/x?key=hunter2", "${oc.env:PW}"])
def test_messages_hold_no_password(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PW", "nosuch://me:hunter2@host/x?key=hunter2")
    config = load_config([f"checkpoint.mirror='{text}'"])
    with pytest.raises(ConfigError, match=r"mirror=(nosuch://host/x|\$\{oc\.env:PW\}) cannot be used") as caught:
        mirror_of(config)
    assert "hunter2" not in str(caught.value)


def test_as_many_are_kept_as_in_the_run_s_folder(tmp_path: Path, url: str) -> None:
    mirror = Mirror(url)
    for step in (10, 20, 30):
        folder = write(tmp_path, step, keep=2)
        mirror.put(folder, [path.name for path in checkpoints(tmp_path)])
    assert mirror.steps() == ["step-000020", "step-000030"]


def test_a_step_that_is_saved_again_replaces_the_one_before(tmp_path: Path, url: str) -> None:
    mirror = Mirror(url)
    folder = write(tmp_path / "run", 10)
    (folder / "learner/more").write_text("")
    mirror.put(folder, [])
    mirror.put(write(tmp_path / "again", 10), [])
    fetched = mirror.fetch(tmp_path / "new")
    assert fetched is not None
    assert not (fetched / "learner/more").exists()


@settings(max_examples=30, deadline=None)
@given(data=st.data(), how=st.sampled_from(["cut", "changed", "missing", "no manifest"]))
def test_what_was_cut_off_or_damaged_there_is_passed_over(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject, how: str
) -> None:
    root = tmp_path_factory.mktemp("mirror")
    mirror = Mirror(f"file://{root}/mirror")
    for step in (10, 20):
        mirror.put(write(root / "run", step), ["step-000010"])
    there = root / "mirror/checkpoints/step-000020"
    files = sorted(path for path in there.rglob("*") if path.is_file() and path.name != MANIFEST)
    file = there / MANIFEST if how == "no manifest" else data.draw(st.sampled_from(files))
    content = file.read_bytes()
    if how in ("missing", "no manifest"):
        file.unlink()
    else:
        at = data.draw(st.integers(0, len(content) - 1))
        file.write_bytes(content[:at] + (b"" if how == "cut" else bytes([content[at] ^ 1]) + content[at + 1 :]))
    assert mirror.fetch(root / "new") == checkpoint_path(root / "new", 10)
    assert [path.name for path in (root / "new/checkpoints").iterdir()] == ["step-000010"]


def test_a_damaged_checkpoint_of_the_run_gives_way_to_the_one_there(tmp_path: Path, url: str) -> None:
    mirror, folder = Mirror(url), write(tmp_path, 10)
    mirror.put(folder, [])
    (folder / "learner/weights").unlink()
    assert mirror.fetch(tmp_path) == folder == newest(tmp_path)


def test_another_run_s_checkpoints_are_not_written_over(tmp_path: Path, url: str) -> None:
    mirror = Mirror(url)
    mirror.put(write(tmp_path, 10), [])
    mirror.check("auto")
    with pytest.raises(ConfigError, match="holds step-000010 of another run: choose another place, or continue"):
        mirror.check("never")


@pytest.mark.parametrize(
    ("url", "said"),
    [
        ("nowhere://bucket/run", "Protocol not known: nowhere"),
        ("/proc/mirror", "checkpoint.mirror=/proc/mirror cannot be written: FileNotFoundError"),
    ],
)
def test_a_place_that_cannot_be_written_is_refused(url: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        Mirror(url).check("never")
