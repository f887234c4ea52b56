"""The reader of a run's folder: configuration, metrics, files in order, checkpoints."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rlsys.config.compose import compose, load_config, to_config
from rlsys.errors import ConfigError, DataError, RlsysError
from rlsys.run_folder.folder import RunFolder, apply_overrides, check_run_dir
from tests.run_folder import Recipe, write_run


@pytest.fixture
def run(tmp_path: Path, tokenizer: Any) -> RunFolder:
    """A run with changed options and the checkpoints of steps 2 and 10."""
    overrides = ["rollout.max_response_tokens=33", "data.eval_limit=7", "rewards=[{name: target_length, target: 5}]"]
    for step in (2, 10):
        folder = tmp_path / "checkpoints" / f"step-{step:06d}"
        folder.mkdir(parents=True)
        (folder / "state.json").write_text(f'{{"step": {step}, "prompt_cursor": 0}}')
    return RunFolder.create(tmp_path, load_config(overrides), tokenizer)


def test_overrides_change_what_they_name_and_nothing_else(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RLSYS_DATA", "here")
    overrides = ["data=gsm8k", "eval.num_samples=4", "data.eval_limit=3"]
    config = to_config(apply_overrides(run.typed_config(), compose(overrides), overrides))
    assert config.rollout.max_response_tokens == 33  # the run's
    assert config.rewards == [{"name": "target_length", "target": 5}]
    assert (config.data.eval, config.data.eval_limit) == ("here/gsm8k/test.jsonl", 3)
    assert config.eval.num_samples == 4
    changed = ["reward=target_length"]
    assert (
        to_config(apply_overrides(run.typed_config(), compose(changed), changed)).rewards[0]["name"] == "target_length"
    )


def test_an_experiment_cannot_be_given_with_a_run(run: RunFolder) -> None:
    overrides = ["experiment=quickstart"]
    with pytest.raises(ConfigError, match="the run has its own configuration"):
        apply_overrides(run.typed_config(), compose(overrides), overrides)


def test_create_writes_what_the_readers_need(run: RunFolder, tmp_path: Path) -> None:
    assert RunFolder.is_run(tmp_path)
    assert run.config().rollout.max_response_tokens == 33
    assert (tmp_path / "tokenizer" / "tokenizer.json").is_file()


def test_checkpoints_are_found_by_step(run: RunFolder) -> None:
    assert run.checkpoint().name == "step-000010"
    assert run.checkpoint(2).name == "step-000002"
    with pytest.raises(ConfigError, match="has no checkpoint of step 3; there are: 2, 10"):
        run.checkpoint(3)


def test_a_foreign_folder_has_no_typed_configuration(tmp_path: Path) -> None:
    assert not RunFolder.is_run(tmp_path)
    with pytest.raises(ConfigError, match="is not the folder of a run"):
        RunFolder(tmp_path).config()
    (tmp_path / "config.yaml").write_text("leaner: {lr: 1}\n")
    with pytest.raises(ConfigError, match="was not written by this version of rlsys: Key 'leaner'"):
        RunFolder(tmp_path).config()
    assert RunFolder(tmp_path).options == {"leaner": {"lr": 1}}
    with pytest.raises(ConfigError, match="has no checkpoint"):
        RunFolder(tmp_path).checkpoint()


@pytest.mark.parametrize(
    ("text", "message"), [("a: [1\n", "is not readable YAML"), ("- 1\n", "it must be a mapping of options")]
)
def test_an_unreadable_configuration(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "config.yaml").write_text(text)
    for read in (lambda: RunFolder(tmp_path).options, RunFolder(tmp_path).config):
        with pytest.raises(DataError, match=rf"config\.yaml {message}|config\.yaml .*{message}"):
            read()


def test_a_folder_without_configuration_still_has_metrics(tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\n')
    assert RunFolder(tmp_path).options == {}
    assert RunFolder(tmp_path).rows == [{"step": 1.0}]


def test_everything_that_a_run_wrote(tmp_path: Path) -> None:
    run = RunFolder.open(write_run(tmp_path / "run", Recipe(num_steps=12)))
    assert run.name == "run"
    assert [row["step"] for row in run.rows] == list(range(13))
    assert run.rows[3]["policy/grad_norm"] is None
    assert [file.name for file in run.rollouts][-2:] == ["step-000011.jsonl", "step-000012.jsonl"]
    assert [file.name for file in run.timelines] == ["timeline.json"]


def test_timelines_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Recipe(num_steps=1))
    for step in (100, 20):
        (run / f"timeline-from-{step}.json").write_text("[\n")
    names = [file.name for file in RunFolder(run).timelines]
    assert names == ["timeline.json", "timeline-from-20.json", "timeline-from-100.json"]


def test_a_missing_folder_is_answered_with_the_nearest_name(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    with pytest.raises(RlsysError, match=r"quikstart: no such folder; did you mean 'quickstart'\?"):
        RunFolder.open(tmp_path / "quikstart")
    with pytest.raises(RlsysError, match="no such folder; none are known"):
        RunFolder.open(tmp_path / "nowhere" / "run")


def test_a_folder_without_metrics(tmp_path: Path) -> None:
    with pytest.raises(RlsysError, match=r"metrics\.jsonl is missing: give the folder of a run"):
        _ = RunFolder(tmp_path).rows


@pytest.mark.parametrize("text", ["", '{"step": 1, "rew'])
def test_a_run_without_a_finished_step(tmp_path: Path, text: str) -> None:
    (tmp_path / "metrics.jsonl").write_text(text)
    with pytest.raises(RlsysError, match="has not finished a step yet"):
        _ = RunFolder(tmp_path).rows


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/runs/gsm8k", "gsm8k"),
        ("/runs/quickstart/20260102-030405", "quickstart/20260102-030405"),
        ("/runs/quickstart/20260102-030405-2", "quickstart/20260102-030405-2"),
        ("/runs/sweep/3", "sweep/3"),
    ],
)
def test_a_time_or_a_number_is_named_with_its_parent(path: str, name: str) -> None:
    assert RunFolder(Path(path)).name == name


def test_a_run_is_not_written_over(tmp_path: Path) -> None:
    check_run_dir(tmp_path, "never")
    check_run_dir(tmp_path / "new", "never")
    (tmp_path / "metrics.jsonl").write_text("")
    check_run_dir(tmp_path, "auto")
    with pytest.raises(ConfigError) as caught:
        check_run_dir(tmp_path, "never")
    assert [part for part in (str(tmp_path), "another run_dir", "resume=auto") if part not in str(caught.value)] == []
