"""A checkpoint is whole, or it is passed over with a reason; whatever else lies beside it is left alone."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlsys.errors import ConfigError
from rlsys.run_folder.checkpoint import RunState, checkpoint_path, checkpoints, damage_of, load_state, newest
from tests.unit.run_folder.written import saved

FILES = ("state.json", "manifest.json", "policy/model.safetensors", "learner/rank_0.pt")


def test_a_run_without_checkpoints(tmp_path: Path) -> None:
    assert checkpoints(tmp_path) == []
    assert newest(tmp_path / "nowhere") is None


def test_the_newest_is_the_one_with_the_highest_step(tmp_path: Path) -> None:
    saved(tmp_path, 999_999, 1_000_000)
    assert newest(tmp_path) == tmp_path / "checkpoints" / "step-1000000"


def test_a_checkpoint_of_the_format_before_manifests_is_taken(tmp_path: Path) -> None:
    """The layout and the state as the version before format 2 wrote them."""
    folder = tmp_path / "checkpoints" / "step-000007"
    (folder / "policy").mkdir(parents=True)
    (folder / "policy" / "model.safetensors").write_bytes(b"weights")
    state = {
        "step": 7,
        "prompt_cursor": 56,
        "kl_coef": None,
        "entropy_coef": None,
        "entropy_level": 0.0,
        "nonfinite_in_a_row": 0,
        "nonfinite_total": 1,
        "prompts_pending": [55],
        "prompts_digest": "ab",
        "unscored_in_a_row": 0,
        "unscored_total": 0,
        "eval_unscored_in_a_row": 0,
        "eval_unscored_total": 0,
        "reward_best": {"accuracy": 1.0},
        "started_coef": {"kl": 0.0},
        "written_with": {"learner.num_workers": 1},
    }
    (folder / "state.json").write_text(json.dumps(state))
    assert newest(tmp_path) == folder
    assert load_state(folder) == RunState(**state)
    saved(tmp_path, 8, keep=2)
    assert [path.name for path in checkpoints(tmp_path)] == ["step-000007", "step-000008"]


def rewritten(text: str) -> Callable[[Path], object]:
    return lambda folder: (folder / "state.json").write_text(text)


@pytest.mark.parametrize(
    ("harm", "reason"),
    [
        (lambda folder: (folder / "policy" / "model.safetensors").unlink(), "policy/model.safetensors is missing"),
        (lambda folder: (folder / "learner" / "rank_0.pt").write_bytes(b""), "rank_0.pt has 0 bytes, not the 300"),
        (lambda folder: (folder / "learner" / "rank_0.pt").write_bytes(b"?" * 300), "rank_0.pt changed after writing"),
        (lambda folder: (folder / "state.json").unlink(), "state.json is missing"),
        (lambda folder: (folder / "manifest.json").unlink(), "manifest.json"),
        (lambda folder: (folder / "manifest.json").write_text("[]"), "not a list of files"),
        (rewritten('{"format": 3, "step": 4, "prompt_phase": 1}'), "its format is 3, of a later version of rlsys"),
        (rewritten('{"format": 2, "step": 4, "unknown": 1}'), "unknown"),
        (rewritten('{"format": 2, "step"'), "cannot be read"),
        (rewritten("[]"), "cannot be read"),
        (lambda folder: shutil.copytree(folder.with_name("step-000003"), folder, dirs_exist_ok=True), "that of step 3"),
        (lambda folder: (shutil.rmtree(folder), folder.write_text("")), "it is not a folder"),
    ],
)
def test_the_reason_is_named_and_the_one_before_it_is_taken(
    tmp_path: Path, harm: Callable[[Path], object], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    saved(tmp_path, 3, 4)
    harm(checkpoint_path(tmp_path, 4))
    assert newest(tmp_path) == checkpoint_path(tmp_path, 3)
    (message,) = caplog.messages
    assert message.startswith(f"the checkpoint {checkpoint_path(tmp_path, 4)} is passed over: ")
    assert reason in message


@pytest.fixture(scope="module")
def four(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with four checkpoints; every write to the disk takes its time, so it is made once."""
    run_dir = tmp_path_factory.mktemp("four")
    saved(run_dir, 1, 2, 3, 4)
    return run_dir


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture], derandomize=True)
@given(
    harms=st.lists(
        st.tuples(
            st.integers(1, 4),
            st.sampled_from(FILES),
            st.sampled_from(["truncate", "corrupt", "empty", "delete"]),
            st.floats(0, 0.999),
        ),
        max_size=6,
    )
)
def test_whatever_happens_to_files_the_newest_whole_one_is_taken(
    four: Path,
    tmp_path_factory: pytest.TempPathFactory,
    caplog: pytest.LogCaptureFixture,
    harms: list[tuple[int, str, str, float]],
) -> None:
    run_dir = tmp_path_factory.mktemp("run")
    shutil.copytree(four, run_dir, dirs_exist_ok=True)
    before = {step: contents(checkpoint_path(run_dir, step)) for step in range(1, 5)}
    for step, name, kind, where in harms:
        harm(checkpoint_path(run_dir, step) / name, kind, where)
    whole = [step for step in range(1, 5) if contents(checkpoint_path(run_dir, step)) == before[step]]
    caplog.clear()
    finished = any((checkpoint_path(run_dir, step) / name).exists() for step in range(1, 5) for name in FILES[:2])
    if whole or not finished:
        assert newest(run_dir) == (checkpoint_path(run_dir, whole[-1]) if whole else None)
    else:
        with pytest.raises(ConfigError, match="has no whole checkpoint"):
            newest(run_dir)
    skipped = range(whole[-1] + 1 if whole else 1, 5)
    assert len(caplog.messages) == len(skipped)
    for step, message in zip(reversed(skipped), caplog.messages, strict=True):
        assert f"step-{step:06d} is passed over: " in message


def contents(folder: Path) -> dict[str, bytes]:
    return {name: (folder / name).read_bytes() for name in FILES if (folder / name).exists()}


def harm(path: Path, kind: str, where: float) -> None:
    if not path.exists():
        return
    content = bytearray(path.read_bytes())
    if kind == "delete":
        path.unlink()
    elif kind == "empty":
        path.write_bytes(b"")
    elif content:
        at = int(where * len(content))
        content[at] ^= 0x15
        path.write_bytes(bytes(content[:at] if kind == "truncate" else content))


def test_a_run_whose_checkpoints_are_all_damaged_is_not_started_over(tmp_path: Path) -> None:
    saved(tmp_path, 1)
    (checkpoint_path(tmp_path, 1) / "policy" / "model.safetensors").unlink()
    with pytest.raises(ConfigError, match=r"step-000001: policy/model\.safetensors is missing\): restore one, choose"):
        newest(tmp_path)


def test_one_that_was_never_finished_is_no_reason_to_refuse(tmp_path: Path) -> None:
    (tmp_path / "checkpoints" / "step-000001" / "learner").mkdir(parents=True)
    assert newest(tmp_path) is None


def test_a_folder_that_cannot_be_read_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Such as one of a file server that does not answer; permissions do not stop root, who may run this."""
    saved(tmp_path, 1, 2)
    read_text = Path.read_text

    def failing(path: Path, **options: str) -> str:
        if "step-000002" in str(path):
            raise OSError(5, "Input/output error")
        return read_text(path, **options)

    monkeypatch.setattr(Path, "read_text", failing)
    assert newest(tmp_path) == checkpoint_path(tmp_path, 1)
    assert "Input/output error" in str(damage_of(checkpoint_path(tmp_path, 2), content=False))
