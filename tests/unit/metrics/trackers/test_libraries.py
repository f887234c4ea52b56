"""Every tracker with its real library: a run of four steps, resumed after the second and run to its fifth."""

from __future__ import annotations

import importlib.util
import json
import os
import sqlite3
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

TWO_STARTS = """
import json, logging, math, sys
from pathlib import Path
from rlsys.config.schema import LoggingConfig
from rlsys.metrics.trackers import threads
from rlsys.run_folder.metrics import MetricsWriter

logging.basicConfig(stream=sys.stdout, format="%(message)s", level=logging.INFO)
threads.CLOSE_S = 60.0  # a busy machine is no failure of the library

folder, tracker = Path(sys.argv[1]), json.loads(sys.argv[2])
config = {"seed": 3, "learner": {"lr": 1e-3, "notes": None}, "rewards": [{"name": "exact_match"}]}
for resume_step, last in ((0, 4), (2, 5)):
    writer = MetricsWriter(folder, LoggingConfig(trackers=[tracker]), resume_step=resume_step, settings=config)
    for step in range(resume_step + 1, last + 1):
        value = step + resume_step / 10
        writer.write({"step": step, "reward/total/mean": value, "policy/kl_ref": None, "bad": math.nan})
    writer.close()
"""
FIRST = [(1, 1.0), (2, 2.0), (3, 3.0), (4, 4.0)]
AGAIN = [(3, 3.2), (4, 4.2), (5, 5.2)]


def needs(*modules: str) -> pytest.MarkDecorator:
    missing = [module for module in modules if importlib.util.find_spec(module) is None]
    return pytest.mark.skipif(bool(missing), reason=f"not installed: {', '.join(missing)}")


def two_starts(folder: Path, tracker: str | dict[str, Any], **environment: str) -> list[str]:
    """Return what trackers logged in both starts. The process ends by itself: no library keeps it alive."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "MLFLOW", "TRACKIO"))}
    home = folder.parent / "home"  # nobody's keys, settings or databases
    home.mkdir(exist_ok=True)
    result = subprocess.run(
        [sys.executable, "-c", TWO_STARTS, str(folder), json.dumps(tracker)],
        env={**kept, "HOME": str(home), "NETRC": str(home / "netrc"), **environment},
        cwd=home,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    assert (folder / "metrics.jsonl").read_text().count("\n") == 5
    return [line for line in result.stdout.splitlines() if line.startswith("tracker ")]


def test_tensorboard_forgets_what_is_run_again(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert two_starts(tmp_path / "run", "tensorboard") == []
    events = EventAccumulator(str(tmp_path / "run")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("reward/total/mean")]
    assert found == [(step, pytest.approx(value)) for step, value in [*FIRST[:2], *AGAIN]]
    assert set(events.Tags()["scalars"]) == {"step", "reward/total/mean"}


def test_jsonl_appends_the_rows_of_metrics_jsonl(tmp_path: Path) -> None:
    path = tmp_path / "far" / "away.jsonl"
    assert two_starts(tmp_path / "run", {"name": "jsonl", "path": str(path)}) == []
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert [(row["step"], row["reward/total/mean"]) for row in rows] == [*FIRST, *AGAIN]
    assert rows[:2] + rows[4:] == [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").open()]
    assert rows[0] == {"step": 1, "reward/total/mean": 1.0, "policy/kl_ref": None, "bad": None}


def test_jsonl_keeps_off_the_run_s_own_record(tmp_path: Path) -> None:
    logged = two_starts(tmp_path / "run", {"name": "jsonl", "path": str(tmp_path / "run" / "metrics.jsonl")})
    assert "the run's own metrics.jsonl" in logged[0]


def wandb_records(path: Path) -> list[Any]:
    """W&B's offline file: seven bytes, then LevelDB's log format, pieces of records in blocks of 32 KiB."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, place, record, records = path.read_bytes(), 7, b"", []
    while place < len(data):
        if 32768 - place % 32768 < 7:
            place += 32768 - place % 32768
            continue
        _, length, kind = struct.unpack_from("<IHB", data, place)
        record += data[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last piece
            records.append(Record.FromString(record))
            record = b""
    return records


@needs("wandb")
def test_wandb_without_a_key_is_offline_and_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    logged = two_starts(folder, {"name": "wandb", "project": "mine", "group": "all"})
    assert logged == [f"tracker 'wandb': offline; upload later with: wandb sync {folder}/wandb/offline-run-*"] * 2
    run_id = (folder / "tracker_id").read_text()
    files = sorted(folder.glob(f"wandb/offline-run-*/run-{run_id}.wandb"))  # by time
    found = [record for path in files for record in wandb_records(path)]
    starts = [record.run for record in found if record.HasField("run")]
    assert {(run.run_id, run.project, run.run_group, run.display_name) for run in starts} == {
        (run_id, "mine", "all", "run")
    }
    config = {item.key: json.loads(item.value_json) for item in starts[0].config.update}
    assert config["learner"] == {"lr": 1e-3, "notes": None}
    history = [
        {(item.key or item.nested_key[0]): json.loads(item.value_json) for item in record.history.item}
        for record in found
        if record.HasField("history")
    ]
    assert [(row["step"], row["reward/total/mean"]) for row in history] == [*FIRST, *AGAIN]
    assert "bad" not in history[0]


@needs("wandb")
def test_wandb_obeys_its_environment(tmp_path: Path) -> None:
    logged = two_starts(tmp_path / "run", "wandb", WANDB_MODE="offline", WANDB_API_KEY="k" * 40)
    assert len(logged) == 2
    assert all("offline" in line for line in logged)


MLFLOW = ("mlflow.tracking", "sqlalchemy", "alembic") if importlib.util.find_spec("mlflow") else ("mlflow",)


@needs(*MLFLOW)
@pytest.mark.parametrize("store", ["sqlite", "file"])
def test_mlflow(tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    uri = {"sqlite": f"sqlite:///{tmp_path}/mlflow.db", "file": f"file:{tmp_path}/mlruns"}[store]
    tracker = {"name": "mlflow", "uri": uri, "experiment": "mine", "run_name": "the run"}
    assert two_starts(tmp_path / "run", tracker, MLFLOW_ALLOW_FILE_STORE="true") == []
    client = MlflowClient(tracking_uri=uri)
    (run,) = client.search_runs([client.get_experiment_by_name("mine").experiment_id])
    assert (run.info.status, run.info.run_name) == ("FINISHED", "the run")
    assert run.data.params == {
        "seed": "3",
        "learner.lr": "0.001",
        "learner.notes": "null",
        "rewards": '[{"name": "exact_match"}]',
    }
    assert set(run.data.metrics) == {"step", "reward/total/mean"}
    history = client.get_metric_history(run.info.run_id, "reward/total/mean")
    assert sorted((metric.step, metric.value) for metric in history) == sorted([*FIRST, *AGAIN])


@needs("trackio")
def test_trackio_needs_no_network(tmp_path: Path) -> None:
    tracker = {"name": "trackio", "project": "mine"}
    assert two_starts(tmp_path / "run", tracker, TRACKIO_DIR=str(tmp_path / "trackio")) == []
    database = sqlite3.connect(tmp_path / "trackio" / "mine.db")
    rows = database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert {name for name, _, _ in rows} == {f"run-{(tmp_path / 'run' / 'tracker_id').read_text()}"}
    assert [(step, json.loads(values)["reward/total/mean"]) for _, step, values in rows] == [*FIRST, *AGAIN]
    assert database.execute("SELECT COUNT(*) FROM configs").fetchone() == (1,)
