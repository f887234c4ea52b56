"""From rows to prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers.processors import TemplateProcessing

from rlsys.config.build_schema import TokenizerBuild
from rlsys.config.schema import DataConfig
from rlsys.data.encode import PromptEncoder, check_rows
from rlsys.data.loading import LoadedRows
from rlsys.data.sources import Source
from rlsys.errors import ConfigError, DataError
from rlsys.models.resolve import load_tokenizer
from rlsys.models.tiny import build_tokenizer
from rlsys.types import Prompt

QUESTION = [{"role": "user", "content": "1+1"}]


def encode(tokenizer: Any, value: Any, **options: Any) -> Prompt:
    row = {"prompt": value, "answer": "2"}
    return encoder(tokenizer, DataConfig(**options)).encode(loaded([row]))[0][0]


def encoder(tokenizer: Any, config: DataConfig, max_prompt_tokens: int = 50) -> PromptEncoder:
    return PromptEncoder(tokenizer, config, max_prompt_tokens=max_prompt_tokens, vocab_rows=101)


def loaded(rows: list[dict[str, Any]]) -> LoadedRows:
    return LoadedRows(Source("rows"), rows, range(len(rows)))


def test_a_plain_prompt_is_taken_as_it_is(tokenizer: Any) -> None:
    prompt = encode(tokenizer, "1+1=")
    assert (prompt.index, prompt.text, prompt.is_conversation) == (0, "1+1=", False)
    assert prompt.token_ids.tolist() == tokenizer("1+1=")["input_ids"]
    assert prompt.token_ids.dtype == "int32"
    assert prompt.columns == {"answer": "2"}


def test_with_the_template_a_plain_prompt_is_a_user_message(tokenizer: Any) -> None:
    prompt = encode(tokenizer, "1+1", chat_template=True)
    assert prompt.text == QUESTION
    assert prompt.is_conversation
    assert tokenizer.decode(prompt.token_ids) == "<user>1+1<end><assistant>"
    assert len(prompt.token_ids) == 6  # each special token once


def test_messages_always_use_the_template(tokenizer: Any) -> None:
    messages = [{"role": "user", "content": "1+1", "name": None}]  # keys without a value, as datasets adds them, go
    prompt = encode(tokenizer, messages)
    assert prompt.text == QUESTION
    assert tokenizer.decode(prompt.token_ids) == "<user>1+1<end><assistant>"


def test_what_else_a_message_holds_reaches_the_template() -> None:
    calling = build_tokenizer(TokenizerBuild())
    calling.chat_template = (
        "{% for m in messages %}{{ m.content }}{% for c in m.tool_calls %}!{{ c.name }}{% endfor %}{% endfor %}"
    )
    messages = [
        *QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [{"name": "add"}]},
        {"role": "tool", "content": "2"},
    ]
    prompt = encode(calling, messages)
    assert prompt.text == messages
    assert calling.decode(prompt.token_ids) == "1+1!add2"


def test_a_beginning_that_the_template_holds_is_not_added_again() -> None:
    doubled = build_tokenizer(TokenizerBuild())
    begin = ("<user>", doubled.convert_tokens_to_ids("<user>"))
    doubled.backend_tokenizer.post_processor = TemplateProcessing(single="<user> $A", special_tokens=[begin])
    assert doubled.decode(encode(doubled, "1+1=").token_ids) == "<user>1+1="  # what the tokenizer adds to plain text
    assert doubled.decode(encode(doubled, QUESTION).token_ids) == "<user>1+1<end><assistant>"


def test_the_system_prompt_comes_first(tokenizer: Any) -> None:
    prompt = encode(tokenizer, "1+1", chat_template=True, system_prompt="Add.")
    assert tokenizer.decode(prompt.token_ids) == "<system>Add.<end><user>1+1<end><assistant>"


def test_a_system_message_of_the_data_stays(tokenizer: Any) -> None:
    own = [{"role": "system", "content": "Subtract."}, *QUESTION]
    assert encode(tokenizer, own, system_prompt="Add.").text == own


def test_a_system_prompt_is_never_dropped_silently(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"data\.system_prompt.*data\.chat_template"):
        encode(tokenizer, "1+1", system_prompt="Add.")


def test_another_prompt_column(tokenizer: Any) -> None:
    rows = [{"question": "1+1=", "prompt": "not this"}]
    prompt = encoder(tokenizer, DataConfig(prompt_column="question")).encode(loaded(rows))[0][0]
    assert prompt.text == "1+1="
    assert prompt.columns == {"prompt": "not this"}


def test_a_tokenizer_without_a_template(tokenizer: Any) -> None:
    bare = build_tokenizer(TokenizerBuild())
    bare.chat_template = None
    with pytest.raises(ConfigError, match="no chat template"):
        encode(bare, QUESTION)


@pytest.mark.parametrize(
    "value", [7, ["1+1"], {"role": "user"}, [{"role": "user"}], [], [*QUESTION, {"role": "assistant", "content": None}]]
)
@pytest.mark.parametrize("system_prompt", [None, "Add."])
def test_what_is_neither_text_nor_messages_names_the_row(tokenizer: Any, value: Any, system_prompt: str | None) -> None:
    with pytest.raises(DataError, match=r"rows, row 1: column 'prompt' is neither a string nor a list"):
        encode(tokenizer, value, system_prompt=system_prompt)


def test_rows_are_there_and_have_a_prompt() -> None:
    check_rows(loaded([{"prompt": "1+1="}, {"prompt": ""}]), "prompt")
    with pytest.raises(DataError, match=r"rows, row 2: no prompt column 'prompt'; the row has: answer"):
        check_rows(loaded([{"prompt": "1+1="}, {"answer": "2", "prompt": None}]), "prompt")


def test_a_template_around_a_plain_prompt(tokenizer: Any, tmp_path: Path) -> None:
    around = "Solve {{ content | trim }} now."
    assert encode(tokenizer, " 1+1 ", prompt_template=around).text == "Solve 1+1 now."
    (tmp_path / "around.jinja").write_text(around)
    prompt = encode(tokenizer, "1+1", prompt_template=str(tmp_path / "around.jinja"), chat_template=True)
    assert prompt.text == [{"role": "user", "content": "Solve 1+1 now."}]
    assert encode(tokenizer, QUESTION, prompt_template=around).text == QUESTION  # messages stay what they are
    with pytest.raises(ConfigError, match=r"data.prompt_template: no such file: .*around.jinja"):
        encode(tokenizer, "1+1", prompt_template="missing/around.jinja")


@pytest.mark.parametrize(
    ("around", "said"),
    [
        ("Solve {{ contents }}.", r"data\.prompt_template does not use `content`.*; it uses contents"),
        (
            "{% if system %}{% endif %}{{ content }}",
            r"rows, row 1: data\.prompt_template cannot be filled in: UndefinedError: 'system' is undefined.*`content`",
        ),
        ("Solve\n{{ content", r"data\.prompt_template, line 2: not a jinja template: unexpected end of template"),
        ("{{ content | trimm }}", r"data\.prompt_template, line 1: .*'trimm'"),
    ],
)
def test_a_template_that_asks_for_what_there_is_not(tokenizer: Any, around: str, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        encode(tokenizer, "1+1", prompt_template=around)


def test_a_chat_template_that_refuses_a_row_names_it(model_folder: Path) -> None:
    strict = load_tokenizer(str(model_folder), chat_template="{{ raise_exception('no system') }}")
    with pytest.raises(
        ConfigError, match=r"rows, row 1: the chat template .*does not take messages .*'user'.*no system"
    ):
        encode(strict, QUESTION)


def test_another_chat_template_with_variables(tokenizer: Any, model_folder: Path) -> None:
    text = "{{ messages[0].content }}{% if short %}!{% endif %}{% if add_generation_prompt %}>{% endif %}"
    changed = load_tokenizer(str(model_folder), chat_template=text)
    prompt = encode(changed, "1+1", chat_template=True, chat_template_options={"short": True})
    assert changed.decode(prompt.token_ids) == "1+1!>"
    assert tokenizer.chat_template != text


def test_overlong_prompts_are_left_out_and_counted_where_that_is_asked_for(tokenizer: Any) -> None:
    rows = loaded([{"prompt": "1" * size} for size in (3, 60, 50, 51)])
    filtering = DataConfig(overlong="filter")
    prompts, num_left_out = encoder(tokenizer, filtering).encode(rows, first_index=10)
    assert [(prompt.index, len(prompt.token_ids)) for prompt in prompts] == [(10, 3), (11, 50)]
    assert num_left_out == 2
    with pytest.raises(DataError, match=r"rows, row 2: the prompt has 60 tokens, 1 to 50 .*data\.overlong=filter"):
        encoder(tokenizer, DataConfig()).encode(rows)
    with pytest.raises(DataError, match="all prompts are longer than 2 tokens"):
        encoder(tokenizer, filtering, max_prompt_tokens=2).encode(rows)


@pytest.mark.parametrize("overlong", ["refuse", "filter"])
def test_an_empty_prompt_is_not_too_long(tokenizer: Any, overlong: str) -> None:
    with pytest.raises(DataError, match=r"rows, row 1: the prompt has 0 tokens.* fill its column 'prompt'") as caught:
        encode(tokenizer, "", overlong=overlong)
    assert "overlong" not in str(caught.value)


@pytest.mark.parametrize(
    ("around", "said"),
    [
        ("User: {} Assistant:", "write {{ content }}"),
        ("{content}", "write {{ content }}"),
        ("Solve\nthis", "its text is the same whatever that is: 'Solve\\nthis'"),
        ("{# {{ content }} #}Solve.", "does not use `content`"),
        ("{{ 'content' }}", "does not use `content`"),
    ],
)
def test_a_template_that_gives_every_prompt_the_same_text_is_refused(tokenizer: Any, around: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        encode(tokenizer, "1+1", prompt_template=around)
    assert "data.prompt_template does not use `content`" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    "around",
    [
        "{{ content | length }}",
        "{{ content | int + 1 }}",
        "{{ content.split('+')[1] }}!",
        "{% if 'Question:' in content %}{{ content.partition('Question:')[2] }}{% else %}1{% endif %}",
    ],
)
def test_a_template_that_uses_a_part_of_the_content_is_taken(tokenizer: Any, around: str) -> None:
    assert encode(tokenizer, "1+1", prompt_template=around).text in ("3", "1", "1!")


def test_a_template_that_fails_in_python_names_the_row(tokenizer: Any) -> None:
    with pytest.raises(ConfigError, match=r"rows, row 1: data\.prompt_template cannot be filled in: TypeError"):
        encode(tokenizer, "1+1", prompt_template="{{ content + 1 }}")


@pytest.mark.parametrize("value", ["a\ud83db", [{"role": "user", "content": "\udc00"}]])
def test_half_a_character_names_the_row(tokenizer: Any, value: Any) -> None:
    with pytest.raises(DataError, match=r"rows, row 1: the prompt holds half a character, '\\ud"):
        encode(tokenizer, value)


def test_a_token_without_a_row_in_the_model_names_row_and_token() -> None:
    longer = build_tokenizer(TokenizerBuild())
    longer.add_tokens(["<extra>"])
    assert len(longer) == 102
    with pytest.raises(DataError, match=r"rows, row 1: the prompt has the token '<extra>' \(id 101\).* 101 rows"):
        encode(longer, "1<extra>")


def test_an_assistant_s_message_at_the_end_is_refused_or_continued(tokenizer: Any) -> None:
    prefilled = [*QUESTION, {"role": "assistant", "content": "<think>\n"}]
    with pytest.raises(DataError, match=r"rows, row 1: the last message .* data\.continue_final_message=true"):
        encode(tokenizer, prefilled)
    prompt = encode(tokenizer, prefilled, continue_final_message=True)
    assert tokenizer.decode(prompt.token_ids) == "<user>1+1<end><assistant><think>\n"
    assert prompt.text == prefilled
    asked = encode(tokenizer, QUESTION, continue_final_message=True)  # nothing to continue: a question as ever
    assert tokenizer.decode(asked.token_ids) == "<user>1+1<end><assistant>"
