"""The command line: what it prints and how it ends."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from rlsys.cli import main


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """The command line sets a handler for SIGTERM: give the tests' own back."""
    before = signal.getsignal(signal.SIGTERM)
    yield
    signal.signal(signal.SIGTERM, before)


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str) -> int:
    """Exit status of `rlsys arguments`."""
    monkeypatch.setattr(sys, "argv", ["rlsys", *arguments])
    try:
        main()
    except SystemExit as end:
        return int(end.code or 0)
    return 0


def test_cfg_job_prints_the_configuration(tmp_path: Path) -> None:
    result = subprocess.run(
        [sys.executable, "-m", "rlsys.cli", "train", "--cfg", "job", "train.num_steps=7"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
    )
    assert result.returncode == 0, result.stderr
    printed = OmegaConf.create(result.stdout)
    assert printed.train.num_steps == 7
    assert printed.model.build.max_context == 64  # the quickstart's
    assert not list(tmp_path.iterdir())  # asking leaves nothing behind


def test_help(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(monkeypatch, "--help") == 0
    assert "rlsys train" in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [[], ["trian"]])
def test_no_command_or_an_unknown_one(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    assert run(monkeypatch, *arguments) == 2
    assert "usage: rlsys COMMAND" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (["train.num_step=3"], "rlsys: unknown configuration key 'train.num_step': did you mean 'train.num_steps'?"),
        (["experiment=quik"], "rlsys: experiment=quik: "),
        (["learner.zero_stage=7", "logging.trackers=[]"], "rlsys: learner.zero_stage=7: "),
        (["train.num_steps=many"], "'many'"),
        (["train.num_steps=[1"], "'[1'"),
    ],
)
def test_a_refusal_is_one_line_without_a_traceback(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
    overrides: list[str],
    said: str,
) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(monkeypatch, "train", *overrides) == 1
    printed = capsys.readouterr()
    assert said in printed.err
    assert "Traceback" not in printed.err
    assert not list(tmp_path.iterdir())


def test_a_used_run_dir_is_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 0}\n')
    assert run(monkeypatch, "train", f"run_dir={tmp_path}") == 1
    assert "already holds a run" in capsys.readouterr().err
    assert (tmp_path / "metrics.jsonl").read_text() == '{"step": 0}\n'


def test_make_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    from transformers import AutoConfig

    sizes = ["--hidden-size", "64", "--num-layers", "1", "--num-heads", "2", "--num-kv-heads", "2", "--no-tied"]
    folder = tmp_path / "model"
    assert run(monkeypatch, "make-model", str(folder), "--architecture", "llama", *sizes) == 0
    config = AutoConfig.from_pretrained(folder)
    assert (config.model_type, config.hidden_size, config.num_hidden_layers) == ("llama", 64, 1)
    assert config.tie_word_embeddings is False
    # 101 tokens of 64, embedded and projected: 2 * 6464.  One layer: attention 4 * 64 * 64 = 16384, the gated
    # feed-forward 3 * 64 * 384 = 73728, two norms of 64; and the last norm of 64.  In all 103232.
    assert "llama, 103,232 parameters, vocabulary 101" in capsys.readouterr().out


def test_make_model_refuses_a_shape_that_no_engine_runs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert run(monkeypatch, "make-model", str(tmp_path / "model"), "--hidden-size", "64") == 1
    assert "hidden_size / num_heads is 16" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()
