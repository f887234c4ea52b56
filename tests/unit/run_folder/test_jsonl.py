"""Files with one object per line, whole or still being written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rlsys.errors import DataError
from rlsys.run_folder.jsonl import MetricsFollower, json_rows, read_metrics
from tests.run_folder import write_lines


def written(path: Path, *rows: str) -> Path:
    file = path / "metrics.jsonl"
    file.write_text("".join(rows))
    return file


def append(path: Path, text: str) -> None:
    with path.open("a") as file:
        file.write(text)


def steps(follower: MetricsFollower) -> list[float | None]:
    return [row["step"] for row in follower.rows()]


def test_a_line_being_written_is_left_out_and_a_broken_one_is_named(tmp_path: Path) -> None:
    whole = '{"step": 1}\n{"step": 2}\n'
    assert len(read_metrics(written(tmp_path, whole, '{"step": 3, "a'))) == 2
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 3: not JSON"):
        read_metrics(written(tmp_path, whole, '{"step": 3, "a\n'))
    with pytest.raises(DataError, match=r"line 1: not a JSON object"):
        list(json_rows(written(tmp_path, "[1]\n")))
    with pytest.raises(DataError, match=r"line 1: no number under 'step'"):
        read_metrics(written(tmp_path, '{"reward": 1}\n'))


def test_what_is_not_a_number_is_none_and_the_later_row_of_a_step_counts(tmp_path: Path) -> None:
    text = (
        '{"step": 2, "a": NaN, "b": Infinity, "c": "x", "d": 4}\n{"step": 1, "a": 0}\n{"step": 2, "a": 5, "d": null}\n'
    )
    rows = read_metrics(written(tmp_path, text))
    assert rows == [{"step": 1.0, "a": 0.0}, {"step": 2.0, "a": 5.0, "d": None}]
    only = read_metrics(written(tmp_path, text.splitlines()[0]))
    assert only == [{"step": 2.0, "a": None, "b": None, "c": None, "d": 4.0}]


def test_rows_survive_unicode_and_a_torn_character(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    write_lines(path, [{"text": "é🙂\u2028"}])
    with path.open("ab") as file:
        file.write(json.dumps({"text": "é"}, ensure_ascii=False).encode()[:-3])
    assert [row for _, row in json_rows(path)] == [{"text": "é🙂\u2028"}]


def test_a_growing_file_is_followed_line_by_line(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(path)
    assert steps(follower) == []
    append(path, '{"step": 0}\n{"step": 1}\n{"st')
    assert steps(follower) == [0.0, 1.0]
    assert steps(follower) == []
    append(path, 'ep": 2, "a": NaN}\n')
    assert follower.rows() == [{"step": 2.0, "a": None}]


def test_only_the_new_rows_of_a_resumed_run_are_followed(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    follower = MetricsFollower(path)
    write_lines(path, [{"step": step, "seconds": 1.0} for step in range(5)])
    assert steps(follower) == [0.0, 1.0, 2.0, 3.0, 4.0]
    write_lines(path, [{"step": step, "seconds": 1.0} for step in range(3)])  # back to the checkpoint
    append(path, '{"step": 3, "seconds": 1.5}\n')
    assert follower.rows() == [{"step": 3.0, "seconds": 1.5}]
    path.unlink()
    assert steps(follower) == []
    write_lines(path, [{"step": 0, "seconds": 9.0}])  # started anew
    assert steps(follower) == [0.0]


@pytest.mark.parametrize("line", ["no json\n", "[1]\n", '{"reward": 1}\n'])
def test_a_line_that_is_not_a_row_of_metrics(tmp_path: Path, line: str) -> None:
    path = written(tmp_path, line)
    with pytest.raises(DataError, match=r"metrics\.jsonl"):
        MetricsFollower(path).rows()
