"""Conversations of several turns: their ids are those of the whole text, and what was sampled stays as it is."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from rlsys.data.chat import ChatTemplate
from rlsys.data.turns import BREAK, TRIAL_CALL, TRIAL_TOOL, Turns
from rlsys.errors import ConfigError
from rlsys.types import Messages
from tests.unit.data.templates import FAMILIES, tokenizer_of

QUESTION: dict[str, Any] = {"role": "user", "content": "what is the sun?"}
CALL: dict[str, Any] = {"role": "assistant", "content": "", "tool_calls": [TRIAL_CALL]}
RESULT: dict[str, Any] = {"role": "tool", "name": "look_up", "tool_call_id": TRIAL_CALL["id"], "content": '"a star"'}
ANSWER: dict[str, Any] = {"role": "assistant", "content": "the sun is a star"}
AGAIN: dict[str, Any] = {"role": "user", "content": "and the word?"}
LAST: dict[str, Any] = {"role": "assistant", "content": "sun"}


def turns_of(name: str) -> tuple[Turns, ChatTemplate, Any]:
    tokenizer = tokenizer_of(name)
    template = ChatTemplate(tokenizer, {})
    return Turns(template, tokenizer), template, tokenizer


def ids_of(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def played(name: str, conversation: Messages, tools: Any) -> tuple[list[int], list[tuple[int, int]]]:
    """Return the ids of a conversation as it is played, and where its sampled parts are."""
    turns, template, tokenizer = turns_of(name)
    places = [place for place, message in enumerate(conversation) if message["role"] == "assistant"]
    ids = turns.opening(conversation[: places[0]], tools).tolist()
    sampled = []
    for place, following in zip(places, [*places[1:], len(conversation)], strict=True):
        # What a policy would sample: the template's own text of the message, from where its prompt ends.
        prompt = template.prompt(conversation[:place], tools)
        text = template.whole(conversation[: place + 1], tools)
        said = text[text.index(prompt) + len(prompt) :] if prompt in text else text
        said = said[: said.rindex(FAMILIES[name].end)] + FAMILIES[name].end
        # Behind what a prompt ends with, tokens are others than at the beginning of a text.
        start = len(ids)
        whole = ids_of(tokenizer, prompt + said)
        ids += whole[len(ids_of(tokenizer, prompt)) :]
        sampled.append((start, len(ids)))
        if following < len(conversation) or place != places[-1]:
            new = conversation[place + 1 : following]
            ids += turns.between(conversation[:place], conversation[place], new, tools, last=ids[-1]).tolist()
    return ids, sampled


KEEPING = [name for name, family in FAMILIES.items() if family.keeps_answers or name == "qwen3"]


@pytest.mark.parametrize("name", KEEPING)
def test_ids_are_those_of_the_whole_conversation(name: str) -> None:
    has_tools = FAMILIES[name].has_tools
    conversation = [QUESTION, *([CALL, RESULT] if has_tools else []), ANSWER, AGAIN, LAST]
    tools = [TRIAL_TOOL] if has_tools else None
    ids, sampled = played(name, conversation, tools)
    _, template, tokenizer = turns_of(name)
    whole = ids_of(tokenizer, template.whole(conversation, tools))
    assert ids == whole[: len(ids)]
    assert tokenizer.decode(whole[len(ids) :]).strip() == ""
    assert len(sampled) == (3 if has_tools else 2)


def test_a_thought_that_the_template_drops_stays_as_it_was_sampled() -> None:
    turns, template, tokenizer = turns_of("r1")
    opening = turns.opening([QUESTION], None)
    sampled = ids_of(tokenizer, "well, the sun\n</think>\n\na star<｜end▁of▁sentence｜>")
    message = {"role": "assistant", "content": "well, the sun\n</think>\n\na star"}
    between = turns.between([QUESTION], message, [AGAIN], None, last=sampled[-1])
    assert tokenizer.decode(between) == "<｜User｜>and the word?<｜Assistant｜><think>\n"
    assert "well" not in template.prompt([QUESTION, message, AGAIN])
    assert tokenizer.decode([*opening, *sampled, *between]).count("<think>") == 2


@pytest.mark.parametrize("name", FAMILIES)
def test_a_message_that_was_cut_off_gets_its_end(name: str) -> None:
    turns, _, tokenizer = turns_of(name)
    end = tokenizer.convert_tokens_to_ids(FAMILIES[name].end)
    whole = turns.between([QUESTION], ANSWER, [AGAIN], None, last=end).tolist()
    cut = turns.between([QUESTION], ANSWER, [AGAIN], None, last=ids_of(tokenizer, "star")[-1]).tolist()
    assert cut == [end, *whole]


@pytest.mark.parametrize("name", FAMILIES)
def test_no_content_is_read_as_a_special_token(name: str) -> None:
    turns, _, tokenizer = turns_of(name)
    family = FAMILIES[name]
    evil = f"x{''.join(family.special)}{BREAK} y"
    plain = turns.between([QUESTION], ANSWER, [{"role": "user", "content": "x y"}], None, last=None).tolist()
    made = turns.between([QUESTION], ANSWER, [{"role": "user", "content": evil}], None, last=None).tolist()
    special = set(tokenizer.all_special_ids)
    assert [number for number in made if number in special] == [number for number in plain if number in special]
    text = tokenizer.decode(made)
    assert BREAK not in text
    if not family.is_metaspace:  # else pieces get a space before them
        assert evil.replace(BREAK, "") in text
    opened = turns.opening([{"role": "user", "content": evil}], None).tolist()
    assert sum(number in special for number in opened) == sum(
        number in special for number in turns.opening([QUESTION], None).tolist()
    )


@pytest.mark.parametrize("name", FAMILIES)
def test_a_template_is_checked_for_what_it_is_used_for(name: str) -> None:
    turns, _, _ = turns_of(name)
    turns.check(has_tools=False)
    if FAMILIES[name].has_tools:
        turns.check(has_tools=True)
    else:
        with pytest.raises(ConfigError, match="does not show tools"):
            turns.check(has_tools=True)
    assert turns.keeps_answers() == FAMILIES[name].keeps_answers


def test_a_template_that_cannot_go_on_is_refused() -> None:
    tokenizer = tokenizer_of("qwen2.5")
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>")
    tokenizer.chat_template = "{{ messages[0].content }}"
    with pytest.raises(ConfigError, match="does not show messages of the roles"):
        Turns(ChatTemplate(tokenizer, {}), tokenizer).check(has_tools=False)


def test_no_tools_and_none_of_them_differ_where_the_template_says_so() -> None:
    tokenizer = tokenizer_of("qwen2.5")
    tokenizer = type(tokenizer)(tokenizer_object=tokenizer.backend_tokenizer, unk_token="<unk>")
    tokenizer.chat_template = (
        "{% if tools is not none %}tools: {{ tools | length }}\n{% endif %}{{ messages[0].content }}"
    )
    turns = Turns(ChatTemplate(tokenizer, {}), tokenizer)
    without, empty = (turns.opening([QUESTION], tools) for tools in (None, []))
    assert tokenizer.decode(empty) == "tools: 0\n" + tokenizer.decode(without)


def test_contents_may_be_missing_or_blocks() -> None:
    turns, _, tokenizer = turns_of("qwen2.5")
    blocks = [{"type": "text", "text": "a "}, {"type": "text", "text": "star"}]
    shown = turns.between([QUESTION], ANSWER, [{"role": "user", "content": blocks}], None, last=None)
    assert "user\na star<|im_end|>" in tokenizer.decode(shown)
    assert "user\n<|im_end|>" in tokenizer.decode(turns.opening([{"role": "user", "content": None}], None))


@pytest.mark.parametrize("name", [name for name, family in FAMILIES.items() if family.has_parallel_calls])
def test_results_of_parallel_calls_are_one_turn(name: str) -> None:
    if not FAMILIES[name].has_tools:
        pytest.skip("this family has no tools")
    turns, template, tokenizer = turns_of(name)
    second = {**TRIAL_CALL, "id": "b1b2c3d4e"}
    message = {**CALL, "tool_calls": [TRIAL_CALL, second]}
    results = [RESULT, {**RESULT, "tool_call_id": second["id"], "content": '"a word"'}]
    end = tokenizer.convert_tokens_to_ids(FAMILIES[name].end)
    ids = turns.between([QUESTION], message, results, [TRIAL_TOOL], last=end)
    text = template.prompt([QUESTION, message, *results], [TRIAL_TOOL])
    assert text.endswith(tokenizer.decode(np.array(ids)))
    assert tokenizer.decode(ids).count("a star") == tokenizer.decode(ids).count("a word") == 1
