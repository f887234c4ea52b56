"""What a report reads of a run's folder, and what it says of one that is none."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlsys.commands.report.curves import REST, choose_panels, columns
from rlsys.commands.report.facts import duration, facts, figures, flat
from rlsys.errors import DataError, RlsysError
from rlsys.run_folder.reading import RunFolder, json_rows, read_metrics, read_run, run_name
from tests.run_folder import Recipe, write_lines, write_run


def made(path: Path, *rows: str) -> Path:
    (path / "metrics.jsonl").write_text("".join(rows))
    return path


def test_a_run_is_read_whole(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", Recipe(num_steps=12)))
    assert run.name == "run"
    assert [row["step"] for row in run.rows] == list(range(13))
    assert run.rows[3]["policy/grad_norm"] is None
    assert [file.name for file in run.rollouts][-2:] == ["step-000011.jsonl", "step-000012.jsonl"]
    assert [file.name for file in run.timelines] == ["timeline.json"]


def test_timelines_are_in_the_order_of_their_steps(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Recipe(num_steps=1))
    for step in (100, 20):
        (run / f"timeline-from-{step}.json").write_text("[\n")
    names = [file.name for file in read_run(run).timelines]
    assert names == ["timeline.json", "timeline-from-20.json", "timeline-from-100.json"]


def test_no_such_folder_names_the_nearest(tmp_path: Path) -> None:
    (tmp_path / "quickstart").mkdir()
    with pytest.raises(RlsysError, match=r"quikstart: no such folder; did you mean 'quickstart'\?"):
        read_run(tmp_path / "quikstart")
    with pytest.raises(RlsysError, match="no such folder; none are known"):
        read_run(tmp_path / "nowhere" / "run")


def test_a_folder_without_metrics_is_no_run(tmp_path: Path) -> None:
    with pytest.raises(RlsysError, match=r"metrics\.jsonl is missing: give the folder of a run"):
        read_run(tmp_path)


@pytest.mark.parametrize("text", ["", '{"step": 1, "rew'])
def test_a_run_without_a_finished_step(tmp_path: Path, text: str) -> None:
    with pytest.raises(RlsysError, match="has not finished a step yet"):
        read_run(made(tmp_path, text))


def test_a_line_being_written_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    whole = '{"step": 1}\n{"step": 2}\n'
    assert len(read_metrics(made(tmp_path, whole, '{"step": 3, "a') / "metrics.jsonl")) == 2
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 3: not JSON"):
        read_metrics(made(tmp_path, whole, '{"step": 3, "a\n') / "metrics.jsonl")
    with pytest.raises(DataError, match=r"line 1: not a JSON object"):
        list(json_rows(made(tmp_path, "[1]\n") / "metrics.jsonl"))
    with pytest.raises(DataError, match=r"line 1: no number under 'step'"):
        read_metrics(made(tmp_path, '{"reward": 1}\n') / "metrics.jsonl")


def test_what_is_no_number_is_none_and_the_later_row_of_a_step_counts(tmp_path: Path) -> None:
    text = (
        '{"step": 2, "a": NaN, "b": Infinity, "c": "x", "d": 4}\n{"step": 1, "a": 0}\n{"step": 2, "a": 5, "d": null}\n'
    )
    rows = read_metrics(made(tmp_path, text) / "metrics.jsonl")
    assert rows == [{"step": 1.0, "a": 0.0}, {"step": 2.0, "a": 5.0, "d": None}]
    only = read_metrics(made(tmp_path, text.splitlines()[0]) / "metrics.jsonl")
    assert only == [{"step": 2.0, "a": None, "b": None, "c": None, "d": 4.0}]


@pytest.mark.parametrize(
    ("path", "name"),
    [
        ("/runs/gsm8k", "gsm8k"),
        ("/runs/quickstart/20260102-030405", "quickstart/20260102-030405"),
        ("/runs/sweep/3", "sweep/3"),
    ],
)
def test_a_time_or_a_number_is_named_after_its_parent(path: str, name: str) -> None:
    assert run_name(Path(path)) == name


def test_an_unreadable_configuration(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("a: [1\n")
    with pytest.raises(DataError, match=r"config\.yaml is not readable YAML"):
        read_run(made(tmp_path, '{"step": 1}\n'))
    (tmp_path / "config.yaml").unlink()
    assert read_run(tmp_path).config == {}  # a report without is still one


def run_of(rows: list[dict[str, float | None]]) -> RunFolder:
    return RunFolder(Path("/runs/x"), "x", {}, rows, [], [])


def test_panels_hold_what_a_run_has_and_nothing_is_lost() -> None:
    rows: list[dict[str, float | None]] = [
        {"step": 1, "policy_version": 1, "reward/total/mean": 0.5, "reward/format/mean": 0.25, "my/number": 1.0},
        {"step": 2, "reward/math/mean": 1.0, "reward/math/error": 0.0, "reward/format/error": 2.0, "time/step_s": 3.0},
        {"step": 3, "time/update_s": 1.0, "policy/kl_ref": None},
    ]
    panels = {panel["title"]: panel for panel in choose_panels([run_of(rows)])}
    labels = {title: [series["label"] for series in panel["series"]] for title, panel in panels.items()}
    assert labels == {
        "Total reward, mean": ["mean"],
        "Reward parts, mean": ["format", "math"],
        "Rewards that failed": ["format"],  # the other counts nothing
        "Time of a step": ["step"],
        "Time per stage": ["update"],
        "my/number": ["my/number"],
    }
    assert panels["my/number"]["section"] == REST
    assert panels["Time per stage"]["stacked"]


def test_a_second_run_brings_its_own_panels_and_equal_labels_become_whole_keys() -> None:
    one = run_of([{"step": 1, "reward/a/error": 1.0}])
    other = run_of([{"step": 1, "reward/a/timeout": 1.0, "policy/entropy": 0.5}])
    failed, entropy = choose_panels([one, other])
    assert [series["label"] for series in failed["series"]] == ["reward/a/timeout", "reward/a/error"]
    assert entropy["title"] == "Entropy"


def test_columns_are_aligned_with_steps() -> None:
    told = columns(run_of([{"step": 1, "a": 1.23456789}, {"step": 4}, {"step": 5, "a": None, "b": 2.0}]))
    assert told == {"steps": [1, 4, 5], "values": {"a": [1.23457, None, None], "b": [None, None, 2.0]}}


def test_facts_and_figures(tmp_path: Path) -> None:
    run = read_run(write_run(tmp_path / "run", Recipe(num_steps=5)))
    told = dict(facts(run))
    assert told["Model"] == "Qwen/Qwen2.5-0.5B"
    assert told["Algorithm"] == "grpo advantages; ppo_clip (clip_high 0.28) loss; token_mean over tokens"
    assert told["Corrections"] == "truncate (high 2.0)"
    assert told["Rewards"] == "math_answer (weight 1.0), format (weight 0.2)"
    assert told["KL"] == "0.04 × k3 in the loss"
    assert told["Batch"] == "4 prompts × 4 responses"
    shown = {label: (value, detail) for label, value, detail in figures(run)}
    assert shown["Steps"] == ("5", "of 5")
    assert shown["Held-out accuracy"] == ("0.700", "at step 5; best 0.700 at step 5")
    assert [label for label, _ in facts(run_of([{"step": 0}]))] == ["Folder"]
    assert figures(run_of([{"step": 0}])) == [("Steps", "0", "")]


def test_durations_have_two_units() -> None:
    assert [duration(seconds) for seconds in (0.25, 59.94, 61.0, 3600.0, 7384.0)] == [
        "0.2 s",
        "59.9 s",
        "1 min 1 s",
        "1 h 0 min",
        "2 h 3 min",
    ]


def test_a_configuration_is_flattened() -> None:
    config = {"a": {"b": 1, "c": {}}, "d": [{"name": "x"}], "e": None, "f": "text"}
    assert flat(config) == {"a.b": "1", "a.c": "{}", "d": "- name: x", "e": "null", "f": "text"}


def test_rows_survive_unicode_and_a_torn_character(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"text": "é🙂\u2028"}])
    with path.open("ab") as file:
        file.write(json.dumps({"text": "é"}, ensure_ascii=False).encode()[:-3])
    assert [row for _, row in json_rows(path)] == [{"text": "é🙂\u2028"}]
