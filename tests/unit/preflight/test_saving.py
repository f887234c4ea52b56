"""What would stop a checkpoint after training is refused before it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from rlsys.config.compose import load_config
from rlsys.data.order import EpochOrder
from rlsys.errors import ConfigError
from rlsys.models.folder import empty_model
from rlsys.preflight import saving
from rlsys.preflight.prepared import Prepared
from rlsys.preflight.saving import STATE_BYTES, check_room, check_saving, checkpoint_bytes


@pytest.fixture
def base(model_folder: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(model_folder, tmp_path / "base"))


def prepared(base: Path, *overrides: str) -> Prepared:
    return Prepared(load_config(list(overrides)), str(base), 64, [], EpochOrder(1, [0], shuffle=False), [], ())


def test_what_transformers_refuses_to_write_is_no_obstacle(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (base / "generation_config.json").write_text('{"temperature": 0.6, "top_p": 0.9}')
    (tmp_path / "temporary").mkdir()
    monkeypatch.setattr(saving.tempfile, "tempdir", str(tmp_path / "temporary"))
    check_saving(load_config([]), str(base))
    assert list((tmp_path / "temporary").iterdir()) == []


def test_a_base_with_a_file_that_cannot_be_copied_is_named(base: Path, tmp_path: Path) -> None:
    (base / "tokenizer.model").symlink_to(tmp_path / "gone")
    with pytest.raises(ConfigError, match=r"no checkpoint of it could be written: .*tokenizer\.model"):
        check_saving(load_config([]), str(base))


@pytest.mark.parametrize(
    ("overrides", "number"),
    [
        ([], 1),
        (["checkpoint.every=10"], 3),  # two are kept, and one is being written
        (["checkpoint.every=100", "train.num_steps=200"], 2),
        (["checkpoint.keep=5", "checkpoint.every=10"], 6),
        (["checkpoint.last=false"], 0),
        (["checkpoint.every_s=900"], 3),  # how many come by time is not known
        (["train.num_steps=2", "checkpoint.every_s=900"], 2),
        (["checkpoint.keep_best=eval/accuracy"], 4),
    ],
)
def test_the_disk_must_hold_the_checkpoints_that_are_kept(
    base: Path,
    tmp_path: Path,
    disk: Callable[[int], None],
    overrides: list[str],
    number: int,
) -> None:
    given = prepared(base, "checkpoint.every_s=0", *overrides)
    size = checkpoint_bytes(given.config, empty_model(str(base)), 4)
    disk(number * size)
    check_room(given, tmp_path / "not" / "yet")
    if number:
        disk(number * size - 1)
        with pytest.raises(ConfigError, match=f"but {number} checkpoints of"):
            check_room(given, tmp_path / "not" / "yet")


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """Make a function that sets how many bytes are free."""

    def has(free: int) -> None:
        monkeypatch.setattr(saving.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(free, 0, free))

    return has


def test_what_an_earlier_start_has_written_needs_no_more_room(
    base: Path, tmp_path: Path, disk: Callable[[int], None]
) -> None:
    given = prepared(base, "checkpoint.every=10")
    for step in (10, 20):
        (tmp_path / "mine" / "checkpoints" / f"step-{step:06d}").mkdir(parents=True)
    disk(checkpoint_bytes(given.config, empty_model(str(base)), 4))
    check_room(given, tmp_path / "mine")


def test_the_size_is_that_of_what_is_trained_and_saved(base: Path) -> None:
    hf = empty_model(str(base))
    size = hf.num_parameters()
    lora = "learner.lora.rank=4"
    assert checkpoint_bytes(load_config([]), hf, 2) == (STATE_BYTES + 2) * size
    assert checkpoint_bytes(load_config([lora]), hf, 2) == 0
    assert checkpoint_bytes(load_config([lora, "learner.lora.use_dora=true"]), hf, 2) == 2 * size
