"""Tool calls in the form of each model family: found, several at once, malformed, and in thoughts."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rlsys.data.calls import CallFormat
from rlsys.data.chat import ChatTemplate
from rlsys.errors import ConfigError
from tests.unit.data.templates import FAMILIES, tokenizer_of

WITH_TOOLS = [name for name, family in FAMILIES.items() if family.has_tools]
QUESTION = [{"role": "user", "content": "what?"}]


def template_of(name: str) -> ChatTemplate:
    return ChatTemplate(tokenizer_of(name), {})


def written(name: str, *calls: tuple[str, dict[str, Any]]) -> str:
    """Return a message with calls as the family's template shows it, without the token that ends it."""
    listed = [
        {"id": f"{number:09d}", "type": "function", "function": {"name": tool, "arguments": arguments}}
        for number, (tool, arguments) in enumerate(calls)
    ]
    template = template_of(name)
    whole = template.whole([*QUESTION, {"role": "assistant", "content": "", "tool_calls": listed}])
    text = whole.partition("<｜Assistant｜>")[2] if name == "r1" else whole.removeprefix(template.prompt(QUESTION))
    return text.rpartition(FAMILIES[name].end)[0]


def found(form: CallFormat, text: str) -> list[tuple[str, dict[str, Any]]]:
    calls = form.find(text)[1]
    assert all(call.problem is None for call in calls), calls
    return [(call.name, call.arguments) for call in calls]


@pytest.mark.parametrize("name", WITH_TOOLS)
def test_calls_are_found_as_the_template_shows_them(name: str) -> None:
    form = CallFormat.of(template_of(name))
    one = ("look_up", {"word": "sun", "deep": True, "n": 3, "of": {"a": [1, None]}})
    assert found(form, written(name, one)) == [one]
    assert found(form, written(name, ("now", {}))) == [("now", {})]
    if FAMILIES[name].has_parallel_calls:
        assert found(form, written(name, one, ("now", {}), one)) == [one, ("now", {}), one]
    assert found(form, "the sun is a star") == []


def test_a_template_without_calls_is_refused() -> None:
    with pytest.raises(ConfigError, match="does not show tool calls"):
        CallFormat.of(template_of("gemma"))


simple = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=4,
)


@pytest.mark.parametrize("name", WITH_TOOLS)
@settings(max_examples=30, deadline=None)
@given(st.dictionaries(st.text(max_size=6), simple, max_size=3))
def test_any_arguments_come_back(name: str, arguments: dict[str, Any]) -> None:
    text = json.dumps(arguments)
    if any(tag in text for tag in (*FAMILIES[name].special, "tool_call", "</think>", "<think>")):
        return  # the form itself is no part of an argument
    form = CallFormat.of(template_of(name))
    assert found(form, written(name, ("f", arguments))) == [("f", arguments)]


QWEN = CallFormat("<tool_call>", "</tool_call>")


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ('<tool_call>{"name": "f", "arguments": {"a": }}</tool_call>', "unknown", "no tool call"),
        ('<tool_call>{"name": "f", "arguments": 3}</tool_call>', "f", "no JSON object"),
        ('<tool_call>{"arguments": {}}</tool_call>', "unknown", "no tool call"),
        ("<tool_call>f(1)</tool_call>", "unknown", "no tool call"),
        ("<tool_call>", "unknown", "no tool call"),
        ('<tool_call>["f"]</tool_call>', "unknown", "no tool call"),
    ],
)
def test_a_malformed_call_has_a_problem_for_the_policy(text: str, name: str, said: str) -> None:
    (call,) = QWEN.find(text)[1]
    assert call.name == name
    assert call.problem is not None
    assert said in call.problem


def test_arguments_may_be_json_in_a_text_and_a_call_may_lack_its_end() -> None:
    assert found(QWEN, '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}') == [("f", {"a": 1})]


def test_text_around_calls_stays() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert QWEN.find(f"first {call} then {call}")[0] == "first  then"
    assert QWEN.find("nothing to call") == ("nothing to call", [])


def test_a_thought_calls_nothing_and_an_unfinished_one_neither() -> None:
    call = '<tool_call>{"name": "f", "arguments": {}}</tool_call>'
    assert found(QWEN, f"<think>{call}") == []
    assert QWEN.find(call, is_thinking=True)[1] == []
    said, calls = QWEN.find(f"<think>{call}</think>so {call}")
    assert (said, len(calls)) == (f"<think>{call}</think>so", 1)
    assert len(QWEN.find(f"hm</think>{call}", is_thinking=True)[1]) == 1


def test_bare_json_is_a_call_only_with_a_name() -> None:
    form = CallFormat.of(template_of("llama3"))
    assert (form.opener, form.arguments_key) == ("", "parameters")
    assert found(form, '{"name": "f", "parameters": {"a": 1}}') == [("f", {"a": 1})]
    assert found(form, '{"answer": 3}') == []
    assert found(form, 'the answer is {"name": 3}') == []


def test_ids_are_those_that_mistral_takes() -> None:
    calls = QWEN.find('<tool_call>{"name": "f", "arguments": {}}</tool_call>' * 2)[1]
    assert {len(call.id) for call in calls} == {9}
    assert calls[0].id != calls[1].id
