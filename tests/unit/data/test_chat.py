"""Chat templates: what they are asked for is what they give, or they are refused."""

from __future__ import annotations

from typing import Any

import pytest

from rlsys.config.build_schema import TokenizerBuild
from rlsys.data.chat import ChatTemplate
from rlsys.errors import ConfigError
from rlsys.models.tiny import build_tokenizer

QUESTION = [{"role": "user", "content": "1+1"}]
# The start of an answer as in Qwen3, whose last answer gets a thought, and as in DeepSeek-R1, which opens the thought.
START = "{% for m in messages %}<{{ m.role }}>"
QWEN3 = START + (
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}<think>"
    "{{ parts[0].removeprefix('<think>') if parts[1:] else '' }}</think>{{ parts[-1] }}{% else %}{{ m.content }}"
    "{% endif %}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"
)
QWEN35 = QWEN3.replace("<assistant>{% endif %}", "<assistant><think>\n{% endif %}")  # opens the thought as well
NO_THOUGHT = QWEN3.replace("<assistant>{% endif %}", "<assistant><think>\n\n</think>\n\n{% endif %}")
R1 = START + (
    "{{ m.content.split('</think>')[-1] }}<end>{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)
TRIMS = START + "{{ m.content | trim }}<end>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"


def chat(template: str | None, **options: Any) -> ChatTemplate:
    tokenizer = build_tokenizer(TokenizerBuild())
    tokenizer.chat_template = template
    return ChatTemplate(tokenizer, options)


def prefilled(content: str) -> list[dict[str, str]]:
    return [*QUESTION, {"role": "assistant", "content": content}]


@pytest.mark.parametrize("template", ["a {word} of its own", "{% if messages %}Hello{% endif %}", "{messages}"])
def test_a_template_that_does_not_use_the_messages_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="does not use `messages`"):
        chat(template)


@pytest.mark.parametrize("name", ["messages", "tokenize", "add_generation_prompt", "continue_final_message", "padding"])
def test_options_that_are_no_variables_are_refused(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"data\.chat_template_options: {name} cannot be set"):
        chat(TRIMS, **{name: True})


def test_no_template() -> None:
    with pytest.raises(ConfigError, match=r"no chat template: set model\.chat_template"):
        chat(None)


@pytest.mark.parametrize("template", ["{{ messages[3].content }}", "{{ messages | length + 'a' }}", "{% for %}"])
def test_a_template_that_fails_is_an_error_for_people(template: str) -> None:
    with pytest.raises(ConfigError, match=r"does not take messages with the roles \['user'\]: \w+Error"):
        chat(template).prompt(QUESTION)


@pytest.mark.parametrize(
    ("template", "prefill", "prompt"),
    [
        (R1, "<think>\n", "<user>1+1<end><assistant><think>\n"),  # once, not twice
        (TRIMS, "<think>\n", "<user>1+1<end><assistant><think>\n"),
        (TRIMS, "So, ", "<user>1+1<end><assistant>So, "),
        (TRIMS, "", "<user>1+1<end><assistant>"),
        (QWEN3, "<think>\n", "<user>1+1<end><assistant><think>\n"),  # not behind an empty thought
        (QWEN3, "<think>a</think>b", "<user>1+1<end><assistant><think>a</think>b"),
        (QWEN3, "", "<user>1+1<end><assistant>"),
        (QWEN35, "<think>\n", "<user>1+1<end><assistant><think>\n"),  # once, not twice
        (QWEN35, "So, ", "<user>1+1<end><assistant><think>\nSo, "),
        (NO_THOUGHT, "<think>\n", "<user>1+1<end><assistant><think>\n"),
        (
            "Q: {{ messages[0].content }} A:{% if messages[1:] %} {{ messages[1].content }}{% endif %}",
            "So",
            "Q: 1+1 A: So",
        ),
    ],
)
def test_a_prefill_is_continued(template: str, prefill: str, prompt: str) -> None:
    assert chat(template).continued(prefilled(prefill)) == prompt


@pytest.mark.parametrize(
    ("template", "prefill"),
    [
        (R1, "<think>a</think>b"),  # the thought would be dropped
        ("{% for m in messages %}{{ m.content | upper }}{% endfor %}", "so"),
        ("User: {{ messages[-1].content }} Assistant:", "so"),  # the question would be lost
    ],
)
def test_a_template_that_changes_a_prefill_is_refused(template: str, prefill: str) -> None:
    with pytest.raises(ConfigError, match=r"does not (continue the message|take messages)"):
        chat(template).continued(prefilled(prefill))


@pytest.mark.parametrize(
    ("template", "token"),
    [
        (TRIMS, "<end>"),
        ("{% for m in messages %}{{ m.content }} \n<system>{% endfor %}", "<system>"),
        ("{% for m in messages %}{{ m.content }}.{% endfor %}", None),  # no special token
        ("{{ messages[0].content }}", None),  # shows no answers
        ("{% if messages[1:] %}{{ raise_exception('one only') }}{% endif %}{{ messages[0].content }}", None),
    ],
)
def test_the_end_of_a_turn(template: str, token: str | None) -> None:
    tokenizer = build_tokenizer(TokenizerBuild())
    found = chat(template).end_of_turn()
    assert found == (None if token is None else tokenizer.convert_tokens_to_ids(token))
