"""Rewards for responses that match a pattern or fit a schema."""

from __future__ import annotations

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rlsys.errors import ConfigError
from rlsys.preflight.rewards import check_reward
from rlsys.rewards import Scores
from rlsys.rewards.entry import absolute, bind_reward
from rlsys.rewards.json_schema import json_schema
from rlsys.rewards.regex import regex
from rlsys.scoring.call import RewardLog, RewardRequest, call_reward

NUMBERED = r"Answer: (?P<answer>\d+)"
PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string"}, "age": {"type": "integer", "minimum": 0}},
    "required": ["name"],
    "additionalProperties": False,
}


def chat(text: str) -> list[dict[str, str]]:
    return [{"role": "assistant", "content": text}]


def test_regex_by_hand() -> None:
    texts = ["a1", "1", "A", ""]
    assert regex(texts, pattern=r"\d") == [1.0, 1.0, 0.0, 0.0]
    assert regex(texts, pattern=r"\d", full_match=True) == [0.0, 1.0, 0.0, 0.0]
    assert regex(texts, pattern="a") == [1.0, 0.0, 0.0, 0.0]
    assert regex(texts, pattern="a", flags="i") == [1.0, 0.0, 1.0, 0.0]
    assert regex([chat("a1")], pattern=r"\d") == [1.0]


def test_the_flags_of_regex() -> None:
    text = "one\nTWO"
    assert regex([text], pattern="^two$") == [0.0]
    assert regex([text], pattern="^two$", flags="im") == regex([text], pattern="^two$", flags="miim") == [1.0]
    assert regex([text], pattern="e.T") == [0.0]
    assert regex([text], pattern="e.T", flags="s") == regex([text], pattern="e . T  # both lines", flags="sx") == [1.0]
    assert (regex(["é"], pattern=r"\w"), regex(["é"], pattern=r"\w", flags="a")) == ([1.0], [0.0])


def test_regex_compares_the_group_named_answer() -> None:
    texts = ["Answer: 7", "Answer: 8, no. Answer: 7", "Answer: 7, no. Answer: 8", "7", "Answer: 7"]
    assert regex(texts, ["7", " 7 ", 7, "7", None], pattern=NUMBERED) == [1.0, 1.0, 0.0, 0.0, None]
    assert regex(texts, pattern=NUMBERED) == [1.0, 1.0, 1.0, 0.0, 1.0]  # no column to compare with
    assert regex(texts, ["8"] * 5, pattern=r"Answer: (\d+)") == [1.0, 1.0, 1.0, 0.0, 1.0]  # no group of that name
    assert regex(["Answer: 7"] * 2, ["7", "8"], pattern=NUMBERED, full_match=True) == [1.0, 0.0]
    assert regex(["Answer: 7"] * 3, [["8", "7"], '["8", "7"]', ["8"]], pattern=NUMBERED) == [1.0, 1.0, 0.0]
    assert regex(["none", "1"], ["", "1"], pattern=r"none|(?P<answer>\d)") == [0.0, 1.0]  # matched, the group did not


def test_regex_through_the_contract_with_and_without_answers() -> None:
    function = bind_reward({"name": "regex", "pattern": NUMBERED, "weight": 2.0})
    assert called(function, ["Answer: 7"], {"answer": ["8"], "level": [3]}) == [0.0]
    assert called(function, ["Answer: 7"], {"level": [3]}) == [1.0]


def called(function: Any, completions: list[str], columns: dict[str, list[Any]]) -> Scores:
    rows = len(completions)
    return call_reward(function, RewardRequest(["?"] * rows, completions, [[1]] * rows, columns, step=1), RewardLog())


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "reward 'regex' needs the option 'pattern'"),
        ({"pattern": "(a"}, "is not a regular expression: missing \\)"),
        ({"pattern": 42}, "option 'pattern' is 42, it must be text"),
        ({"pattern": "a", "flags": "iq"}, "'q' is unknown; use the letters a, i, m, s, x"),
        ({"pattern": "a", "full_match": "yes"}, "it must be true or false"),
        ({"patern": "a"}, "did you mean 'pattern'"),
    ],
)
def test_a_regex_that_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_reward({"name": "regex", **options}, ["answer"])
    check_reward({"name": "regex", "pattern": "a"}, ["answer"])


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"name": "Ada", "age": 36}', 1.0),
        (' {"name": "Ada"}\n', 1.0),
        ('{"age": 36}', 0.0),
        ('{"name": "Ada", "age": -1}', 0.0),
        ('{"name": "Ada", "born": 1815}', 0.0),
        ('["Ada"]', 0.0),
        ("{'name': 'Ada'}", 0.0),
        ('Here: {"name": "Ada"}', 0.0),
        ('{"name": "Ada"', 0.0),
        ("", 0.0),
    ],
)
def test_json_schema_by_hand(text: str, value: float) -> None:
    assert json_schema([text, chat(text)], schema=PERSON) == [value, value]


def test_what_is_no_json_fits_no_schema() -> None:
    deep = "[" * 100_000 + "]" * 100_000
    texts = ["1", "NaN", "[Infinity]", "1e5", "9" * 5000, deep]
    assert json_schema(texts, schema={}) == [1.0, 0.0, 0.0, 1.0, 0.0, 0.0]


FENCED = [
    ('Sure:\n```json\n{"name": "Ada"}\n```\nDone.', 1.0),
    ('```\n{"name": "Ada"}\n```', 1.0),
    ('```JSON \n{"name": "Ada"}\n```', 1.0),
    ('```json\n{"name": 1}\n```\nRather:\n```json\n{"name": "Ada"}\n```', 1.0),  # the last block counts
    ('```json\n{"name": "Ada"}\n```\nRather:\n```json\n{"name": 1}\n```', 0.0),
    ('```json\n{"name": "Ada"}', 0.0),
    ('{"name": "Ada"}', 0.0),
]


@pytest.mark.parametrize(("text", "value"), FENCED)
def test_json_in_a_fenced_block(text: str, value: float) -> None:
    assert json_schema([text], schema=PERSON, fenced=True) == [value]


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
)


@given(json_values)
def test_any_json_fits_the_empty_schema_and_a_schema_of_itself(value: Any) -> None:
    text = json.dumps(value)
    assert json_schema([text], schema={}) == json_schema([text], schema={"const": value}) == [1.0]
    assert json_schema([text], schema={"not": {"const": value}}) == [0.0]


def test_a_schema_from_a_file_whatever_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "person.json").write_text(json.dumps(PERSON))
    monkeypatch.chdir(tmp_path)
    spec = absolute({"name": "json_schema", "schema": "person.json", "fenced": False, "weight": 0.5})
    assert spec == {"name": "json_schema", "schema": f"{tmp_path}/person.json", "fenced": False, "weight": 0.5}
    monkeypatch.chdir("/")
    check_reward(spec, ["answer"])
    assert called(bind_reward(spec), ['{"name": "Ada"}', "{}"], {"answer": ["", ""]}) == [1.0, 0.0]
    assert absolute({"name": "json_schema", "schema": PERSON}) == {"name": "json_schema", "schema": PERSON}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({}, "reward 'json_schema' needs the option 'schema'"),
        ({"schema": {"type": "objekt"}}, "schema is not a JSON schema: \\$.type: 'objekt' is not valid"),
        ({"schema": ["type"]}, "must be a mapping or the path of a JSON file"),
        ({"schema": "no/such.json"}, "cannot read 'no/such.json' as JSON: .*No such file"),
        ({"schema": __file__}, "cannot read '.*test_structure.py' as JSON"),
    ],
)
def test_a_schema_that_cannot_work_is_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        check_reward({"name": "json_schema", **options}, ["answer"])


class Schemas(BaseHTTPRequestHandler):
    """Serves a schema that everything fits, and counts how often it is asked for."""

    served = 0

    def do_GET(self) -> None:
        type(self).served += 1
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"{}")


def test_a_reference_elsewhere_is_an_error_and_no_request() -> None:
    server = HTTPServer(("127.0.0.1", 0), Schemas)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        with pytest.raises(Exception, match="Unresolvable"):
            json_schema(["{}"], schema={"$ref": f"http://127.0.0.1:{server.server_port}/schema.json"})
        assert Schemas.served == 0
    finally:
        server.shutdown()
        server.server_close()


def test_an_older_draft_means_what_it_said() -> None:
    # In draft 4 an exclusive minimum is a truth value beside `minimum`; later drafts refuse that.
    old = {"$schema": "http://json-schema.org/draft-04/schema#", "minimum": 3, "exclusiveMinimum": True}
    assert json_schema(["3", "4"], schema=old) == [0.0, 1.0]
