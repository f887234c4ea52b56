"""Requests to a run by files: in order, answered in place, and never a reason to fail for the run."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import pytest

from rlsys.run_folder.scale_requests import DONE, TAKEN, ScaleRequest, ScaleRequests, answer, read


def test_requests_are_taken_in_order_and_answered_in_their_files(tmp_path: Path) -> None:
    requests = ScaleRequests(tmp_path)
    assert requests.oldest() is None
    first, second = requests.ask(4), requests.ask(2)
    assert requests.oldest() == first
    answer(first, TAKEN, "rollout/2 starts")
    assert read(first) == ScaleRequest(4, TAKEN, "rollout/2 starts")
    assert requests.oldest() == second
    answer(second, DONE, "the run has rollout=2")
    assert requests.oldest() is None


def test_a_request_that_was_withdrawn_stays_so(tmp_path: Path) -> None:
    file = ScaleRequests(tmp_path).ask(4)
    file.unlink()
    answer(file, DONE, "the run has rollout=4")
    assert read(file) is None


def test_a_run_starts_without_requests(tmp_path: Path) -> None:
    ScaleRequests(tmp_path).clear()
    ScaleRequests(tmp_path).ask(4)
    ScaleRequests(tmp_path).clear()
    assert ScaleRequests(tmp_path).oldest() is None


@pytest.mark.parametrize("text", ["", "[4]", "{}", *map(json.dumps, ({"rollout": 0}, {"rollout": "4"}, {"x": 1}))])
def test_a_file_without_sense_is_removed_and_the_next_is_taken(
    tmp_path: Path, text: str, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "scale").mkdir()
    wrong = tmp_path / "scale" / "0.json"
    wrong.write_text(text)
    file = ScaleRequests(tmp_path).ask(4)
    with caplog.at_level(logging.WARNING):
        assert ScaleRequests(tmp_path).oldest() == file
    assert not wrong.exists()
    assert f"removed: {wrong} is no request" in caplog.text
