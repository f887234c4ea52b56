"""The file that `rlsys report` writes, as text; tests/integration/test_report.py opens it."""

from __future__ import annotations

import base64
import gzip
import hashlib
import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.cli import execute
from rlsys.commands.report.page import SCRIPTS, compressed_json
from tests.run_folder import CONFIG, Recipe, write_lines, write_run

HOSTILE = "</script><script>window.hacked = 1</script><img src=x onerror='window.hacked = 1'>"


def unpacked(page: str, name: str) -> Any:
    """What the page holds under a name."""
    found = re.search(rf'<script type="text/plain" id="data-{name}">([A-Za-z0-9+/=]*)</script>', page)
    assert found is not None, name
    text = gzip.decompress(base64.b64decode(found[1])).decode()
    return text if name == "bokeh" else json.loads(text)


@given(
    value=st.recursive(st.none() | st.floats(allow_nan=False, allow_infinity=False) | st.text(), st.lists, max_leaves=9)
)
def test_compressed_data_comes_back_and_means_nothing_to_html(value: Any) -> None:
    text = compressed_json(value)
    assert re.fullmatch("[A-Za-z0-9+/=]+", text)
    assert json.loads(gzip.decompress(base64.b64decode(text))) == value


def test_numbers_that_json_does_not_have_are_refused() -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        compressed_json([float("nan")])


def test_the_page_holds_the_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = write_run(tmp_path / "run", Recipe())
    execute(["report", str(run)])
    output = run / "report.html"
    assert re.fullmatch(rf"{re.escape(str(output))}: \d\.\d MiB\n", capsys.readouterr().out)
    page = output.read_text()
    head = unpacked(page, "head")
    assert [run["name"] for run in head["runs"]] == ["run"]
    assert head["runs"][0]["rollouts"] == {
        "total": 80,
        "shown": 80,
        "names": {"outcome": ["ok", "timeout"], "ended": ["stop", "length"]},
        "starts": [0],
        "largest_advantage": 0.5,
    }
    assert unpacked(page, "0-curves")["values"]["my/own_number"] == [None, 7.0, 14.0, 21.0, 28.0, 35.0]
    assert len(unpacked(page, "0-texts-0")) == 80
    assert unpacked(page, "0-timeline-0")["lanes"] == ["rollout/0", "learner/0"]


def test_nothing_in_the_page_asks_a_network(tmp_path: Path) -> None:
    execute(["report", str(write_run(tmp_path / "run", Recipe(num_steps=1)))])
    page = (tmp_path / "run" / "report.html").read_text()
    assert not re.findall(r"<(?:link|iframe|img|object|embed|base)\b|\b(?:src|href)=(?!\"#)|@import|url\(", page)


def test_only_the_pages_own_scripts_may_run(tmp_path: Path) -> None:
    """The policy names the sums of exactly two scripts: the page's and Bokeh's."""
    execute(["report", str(write_run(tmp_path / "run", Recipe(num_steps=1)))])
    page = (tmp_path / "run" / "report.html").read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)
    assert policy is not None
    allowed = re.search(r"script-src ([^;]*);", policy[1])
    assert allowed is not None
    scripts = [*re.findall(r"<script>(.*?)</script>", page, re.S), unpacked(page, "bokeh")]
    sums = [base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() for script in scripts]
    assert allowed[1].split() == [f"'sha256-{one}'" for one in sums]
    assert len(scripts) == 2
    assert "default-src 'none'" in policy[1]


def test_texts_of_a_run_are_never_markup(tmp_path: Path) -> None:
    config = {**CONFIG, "rewards": [{"name": HOSTILE}], "model": {"path": HOSTILE}}
    run = write_run(tmp_path / "<img src=x onerror=alert(1)>", Recipe(num_steps=1), config)
    row = {"group_id": 0, "prompt": HOSTILE, "response": HOSTILE, "reward": 1.0, "outcome": HOSTILE}
    write_lines(
        run / "rollouts" / "step-000002.jsonl", [{**row, "parts": {HOSTILE: {"value": 1.0, "detail": HOSTILE}}}]
    )
    with (run / "metrics.jsonl").open("a") as file:
        file.write(json.dumps({"step": 2, f"reward/{HOSTILE}/mean": 1.0}) + "\n")
    execute(["report", str(run)])
    page = (run / "report.html").read_text()
    assert "hacked" not in page
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>")
    assert page.count("<script>") == 1
    assert unpacked(page, "0-prompts")[-1] == HOSTILE


def test_the_pages_scripts_write_no_markup() -> None:
    """Texts become text nodes: nothing that parses markup is called anywhere."""
    folder = Path(__file__).parents[4] / "rlsys" / "commands" / "report" / "static"
    assert {file.stem for file in folder.glob("*.js")} == set(SCRIPTS)
    for name in SCRIPTS:
        source = (folder / f"{name}.js").read_text()
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|\beval\b", source), (
            name
        )
        assert "</script" not in source
        assert "<!--" not in source


def test_two_runs_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    runs = [write_run(tmp_path / parent / "run", Recipe(num_steps=2)) for parent in ("first", "second")]
    output = tmp_path / "both.html"
    execute(["report", *map(str, runs), "--output", str(output), "--max-rollouts", "32"])
    head = unpacked(output.read_text(), "head")
    assert [run["name"] for run in head["runs"]] == ["first/run", "second/run"]
    assert [run["rollouts"]["shown"] for run in head["runs"]] == [16, 16]
    assert head["runs"][1]["notes"] == [
        "16 of 32 rollouts are shown, the first groups of each step; give a higher --max-rollouts to see more"
    ]
    assert not (runs[0] / "report.html").exists()


def test_a_run_without_rollouts_or_timeline(tmp_path: Path) -> None:
    write_lines(tmp_path / "metrics.jsonl", [{"step": 0, "eval/accuracy": 0.5}])
    execute(["report", str(tmp_path)])
    page = (tmp_path / "report.html").read_text()
    assert unpacked(page, "0-index") == {}
    assert unpacked(page, "head")["runs"][0]["notes"][0].startswith("no rollouts")


def test_tokens_without_their_tokenizer_are_noted(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Recipe(num_steps=1))
    write_lines(run / "rollouts" / "step-000001.jsonl", [{"response": "a", "tokens": {"ids": [1], "logprobs": [-1.0]}}])
    execute(["report", str(run)])
    notes = unpacked((run / "report.html").read_text(), "head")["runs"][0]["notes"]
    assert notes == [
        "the tokens of 1 rollouts are not coloured: the run has no folder tokenizer/ to decode their ids with"
    ]


def test_fewer_rollouts_than_none(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", Recipe(num_steps=1))
    with pytest.raises(SystemExit):
        execute(["report", str(run), "--max-rollouts", "-1"])
