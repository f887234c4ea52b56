"""Which metrics share a plot."""

from __future__ import annotations

from rlsys.commands.report.curves import REST, choose_panels, columns
from tests.unit.commands.report.conftest import RunOf


def test_panels_hold_every_metric_of_a_run(run_of: RunOf) -> None:
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
        "Responses without a valid reward": ["format"],  # the other counts nothing
        "Time per step": ["step"],
        "Time per stage": ["update"],
        "my/number": ["my/number"],
    }
    assert panels["my/number"]["section"] == REST
    assert panels["Time per stage"]["stacked"]


def test_a_second_run_brings_its_own_panels_and_equal_labels_become_whole_keys(run_of: RunOf) -> None:
    one = run_of([{"step": 1, "reward/a/error": 1.0}])
    other = run_of([{"step": 1, "reward/a/timeout": 1.0, "policy/entropy": 0.5}])
    failed, entropy = choose_panels([one, other])
    assert [series["label"] for series in failed["series"]] == ["reward/a/timeout", "reward/a/error"]
    assert entropy["title"] == "Entropy"


def test_columns_are_aligned_with_steps(run_of: RunOf) -> None:
    found = columns(run_of([{"step": 1, "a": 1.23456789}, {"step": 4}, {"step": 5, "a": None, "b": 2.0}]))
    assert found == {"steps": [1, 4, 5], "values": {"a": [1.23457, None, None], "b": [None, None, 2.0]}}
