"""Programs judged by their test cases."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from rlsys.errors import ConfigError
from rlsys.preflight.rewards import check_reward
from rlsys.rewards import Failed, registry
from rlsys.rewards.entry import bind_reward
from rlsys.sandbox.cases import fenced
from rlsys.sandbox.run import find_obstacle
from rlsys.scoring.call import RewardLog, RewardRequest, call_reward

pytestmark = pytest.mark.skipif(find_obstacle() is not None, reason=f"no sandbox on this machine: {find_obstacle()}")

DOUBLE: dict[str, Any] = {
    "language": "python",
    "test_cases": [{"input": f"{n}\n", "output": f"{2 * n}\n"} for n in (1, 2, 3, 4)],
}


def score(name: str, *rows: tuple[str, Mapping[str, Any] | str | None], **options: Any) -> list[Any]:
    function = bind_reward({"name": name, **options})
    texts, infos = [text for text, _ in rows], [info for _, info in rows]
    count = len(rows)
    request = RewardRequest(["p"] * count, texts, [[1]] * count, {"verification_info": infos}, 1)
    return call_reward(function, request, RewardLog())


def limited_by_cpu(**options: Any) -> Any:
    """A `code` whose programs meet a limit of 1 s of CPU time: on a busy machine those that end are not cut off."""
    function = bind_reward({"name": "code", "wall_s": 60.0, **options})
    function._limits = replace(function._limits, cpu_s=1)  # type: ignore[attr-defined]
    return function


def block(code: str, language: str = "python") -> str:
    return f"First I think.\n```{language}\n{code}\n```\nThat is it."


def test_verification_info_as_json_text() -> None:
    as_text = {**DOUBLE, "test_cases": json.dumps(DOUBLE["test_cases"])}
    in_columns = {"test_cases": {key: [case[key] for case in DOUBLE["test_cases"]] for key in ("input", "output")}}
    for info in (json.dumps(DOUBLE), as_text, json.dumps(as_text), in_columns):
        assert score("code", (RIGHT, info), (HALF, info)) == [1.0, 0.5]
    assert score("code", (RIGHT, "")) == [None]
    (failed,) = score("code", (RIGHT, "{not json"))
    assert isinstance(failed, Failed)
    assert "verification_info is text that is not JSON" in failed.detail
    (failed,) = score("code", (RIGHT, "[1]"))
    assert "it must be a mapping with 'test_cases'" in failed.detail


@pytest.mark.parametrize(
    "cases", [{"input": None}, {"input": "12", "output": "24"}, {"input": ["1"], "output": None}, 7]
)
def test_cases_that_are_no_list_are_an_error_of_the_row_and_are_counted_before_the_run(cases: Any) -> None:
    (failed,) = score("code", (RIGHT, {"test_cases": cases}))
    assert isinstance(failed, Failed)
    assert "they must be a list of mappings" in failed.detail
    column, is_usable = registry.fact("code", "usable", None)
    assert column == "verification_info"
    assert not is_usable({"test_cases": cases})


RIGHT = block("print(int(input()) * 2)")
HALF = block("n = int(input())\nprint(n * 2 if n < 3 else n)")


def test_the_share_of_cases_that_pass() -> None:
    rows = [(RIGHT, DOUBLE), (HALF, DOUBLE), ("no code", DOUBLE), (block("syntax error("), DOUBLE), (RIGHT, None)]
    assert score("code", *rows) == [1.0, 0.5, 0.0, 0.0, None]
    assert score("binary_code", *rows) == [1.0, 0.0, 0.0, 0.0, None]


def test_the_last_block_counts_and_other_languages_do_not() -> None:
    text = block("print(0)") + block("print(int(input()) * 2)") + block("rm -rf /", "bash")
    assert score("code", (text, DOUBLE)) == [1.0]
    assert fenced("```python\na\n```", "py") is None
    assert fenced("```python", "python") is None


def test_white_space_at_the_ends_of_lines_does_not_count_and_missing_lines_do() -> None:
    info = {"test_cases": [{"input": "", "output": "a\nb\n"}]}
    assert score("code", (block("print('a  \\nb\\n\\n')"), info)) == [1.0]
    assert score("code", (block("print('a')"), info)) == [0.0]
    assert score("code", (block("pass"), info)) == [0.0]


def test_a_function_is_called() -> None:
    cases = [{"fn_name": "add", "input": [1, 2], "output": 3}, {"fn_name": "add", "input": "[2, 2]", "output": "4"}]
    info = {"language": "python", "test_cases": cases}
    assert score("code", (block("def add(a, b):\n    return a + b"), info)) == [1.0]
    assert score("code", (block("def add(a, b):\n    return 4"), info)) == [0.5]
    assert score("code", (block("def add(a, b):\n    print('no json')\n    exit()"), info)) == [0.0]
    assert score("code", (block("def add(a, b):\n    print('[' * 10**5)\n    exit()"), info)) == [0.0]


def test_a_function_s_text_is_expected_as_itself_or_as_json() -> None:
    shout = block("def shout(text):\n    return text.upper()")
    for wanted in ("ABC", '"ABC"'):
        cases = [{"fn_name": "shout", "input": ["abc"], "output": wanted}]
        assert score("code", (shout, {"language": "python", "test_cases": cases})) == [1.0]
    cases = [{"fn_name": "shout", "input": ["12"], "output": "12"}]
    assert score("code", (shout, {"language": "python", "test_cases": cases})) == [1.0]
    cases = [{"fn_name": "shout", "input": ["abc"], "output": "abc"}]
    assert score("code", (shout, {"language": "python", "test_cases": cases})) == [0.0]


@pytest.mark.skipif(shutil.which("node") is None, reason="node is not installed")
def test_javascript() -> None:
    info = {"language": "javascript", "test_cases": [{"input": "3\n", "output": "6"}]}
    code = "console.log(2 * Number(require('fs').readFileSync(0, 'utf8')))"
    assert score("code", (block(code, "javascript"), info)) == [1.0]


def test_after_a_case_that_never_ends_the_others_are_not_run() -> None:
    cases = {"test_cases": [{"input": str(n), "output": str(n)} for n in range(20)]}
    text, log = block("n = int(input())\nwhile n: pass\nprint(n)"), RewardLog()
    request = RewardRequest(["p"], [text], [[1]], {"verification_info": [cases]}, 1, deadline_s=300.0)
    assert call_reward(limited_by_cpu(), request, log) == [0.05]
    assert log.metrics["code/timeout"] == [0.5]  # of two runs; all twenty would be 0.95


def test_without_time_a_row_is_a_timeout_and_the_others_have_their_scores(monkeypatch: pytest.MonkeyPatch) -> None:
    looks = itertools.count(time.monotonic(), 600.0)  # each row takes ten minutes: the third begins too late
    monkeypatch.setattr("rlsys.sandbox.cases.time", SimpleNamespace(monotonic=lambda: next(looks)))
    forever = {"test_cases": [{"input": "", "output": ""}]}
    texts = [block("print()"), *[block("while True: pass")] * 6]
    request = RewardRequest(["p"] * 7, texts, [[1]] * 7, {"verification_info": [forever] * 7}, 1, deadline_s=1000.0)
    scores = call_reward(limited_by_cpu(num_parallel=1), request, RewardLog())
    late = Failed("no time was left to run all of its test cases", "timeout")
    assert scores == [1.0, 0.0, *[late] * 5]


def test_a_program_that_takes_too_much_fails_its_case_and_is_counted() -> None:
    function = limited_by_cpu(memory_mib=128)
    info = {"test_cases": [{"input": "", "output": "done"}]}
    texts = [block("while True: pass"), block("x = bytearray(10**9)"), block("print('done')")]
    log = RewardLog()
    request = RewardRequest(["p"] * 3, texts, [[1]] * 3, {"verification_info": [info] * 3}, 1, deadline_s=300.0)
    assert call_reward(function, request, log) == [0.0, 0.0, 1.0]
    assert log.metrics["code/timeout"] == [pytest.approx(1 / 3)]
    assert log.metrics["code/memory"] == [pytest.approx(1 / 3)]


@pytest.mark.parametrize(
    ("info", "said"),
    [
        (
            {"language": "pyton", "test_cases": [{"input": "", "output": ""}]},
            "programs in 'pyton' cannot be run: did you mean",
        ),
        ({"test_cases": [{"input": ""}]}, "a test case has no 'output'"),
        (
            {"language": "javascript", "test_cases": [{"fn_name": "f", "input": [], "output": 1}]},
            "only functions in python can be called",
        ),
    ],
)
def test_cases_that_cannot_be_run_are_errors_and_not_the_response_s_fault(info: Mapping[str, Any], said: str) -> None:
    language = info.get("language", "python")
    (failed,) = score("code", (block("pass", language), info))
    assert isinstance(failed, Failed)
    assert said in failed.detail


def test_before_ray_starts() -> None:
    check_reward({"name": "code"}, ["verification_info"])
    with pytest.raises(ConfigError, match="reward 'code' needs the column 'verification_info'"):
        check_reward({"name": "code"}, ["answer"])
    with pytest.raises(ConfigError, match=r"has no option 'wal_s'.*did you mean 'wall_s'"):
        check_reward({"name": "code", "wal_s": 1}, ["verification_info"])
    with pytest.raises(ConfigError, match="reward 'reward_model' needs the option 'model'"):
        check_reward({"name": "reward_model"}, [])
