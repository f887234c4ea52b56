"""Encoding of rows as prompts: chat messages, templates, token ids, and the check of their lengths."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import Environment, StrictUndefined, Template, TemplateError, TemplateSyntaxError

from rlsys.config.schema import DataConfig
from rlsys.config.templates import text_or_file
from rlsys.data import Row
from rlsys.data.sources import LoadedRows
from rlsys.errors import ConfigError, DataError, nearest
from rlsys.types import Messages, Prompt


def check_rows(loaded: LoadedRows, prompt_column: str) -> None:
    """Raise DataError for the first row without a prompt."""
    for index, row in enumerate(loaded.rows):
        if row.get(prompt_column) is None:
            available = [key for key, value in row.items() if value is not None]
            wanted = loaded.source.prompt_column or prompt_column
            raise DataError(
                f"{loaded.where(index)}: no prompt column '{wanted}'; the row has: {', '.join(available)}. "
                f"Set data.prompt_column ({nearest(wanted, available)})"
            )


class PromptEncoder:
    """An encoder of checked rows as prompts, in their order."""

    def __init__(self, tokenizer: Any, config: DataConfig, max_prompt_tokens: int) -> None:
        """Keep the tokenizer and the options; `max_prompt_tokens` is the longest prompt that is accepted."""
        self._tokenizer = tokenizer
        self._config = config
        self._max_prompt_tokens = max_prompt_tokens
        self._around = None if config.prompt_template is None else _template(config.prompt_template)

    def encode(self, loaded: LoadedRows, first_index: int = 0) -> tuple[list[Prompt], int]:
        """Return the prompts, numbered from `first_index`, and the number of rows that were left out as too long.

        Raises DataError for a row whose prompt is not a text, and with `data.overlong=refuse` for one that is too long.
        """
        prompts: list[Prompt] = []
        for index, row in enumerate(loaded.rows):
            prompt = self._prompt(row, loaded, index, first_index + len(prompts))
            if self._fits(prompt, loaded, index):
                prompts.append(prompt)
        if not prompts:
            raise DataError(
                f"data '{loaded.source.name}': all prompts are longer than {self._max_prompt_tokens} tokens: raise "
                "data.max_prompt_tokens, lower rollout.max_response_tokens or use a model with a longer context"
            )
        return prompts, len(loaded.rows) - len(prompts)

    def _prompt(self, row: Row, loaded: LoadedRows, index: int, number: int) -> Prompt:
        column = self._config.prompt_column
        text = self._text(row[column], loaded, index)
        columns = {key: value for key, value in row.items() if key != column}
        return Prompt(number, text, np.array(self._token_ids(text, loaded, index), dtype=np.int32), columns)

    def _fits(self, prompt: Prompt, loaded: LoadedRows, index: int) -> bool:
        size = len(prompt.token_ids)
        if 0 < size <= self._max_prompt_tokens:
            return True
        if size and self._config.overlong == "filter":
            return False
        raise DataError(
            f"{loaded.where(index)}: the prompt has {size} tokens, 1 to {self._max_prompt_tokens} are possible "
            "(data.max_prompt_tokens, or what the context leaves beside the longest response). Leave such rows out "
            "with data.overlong=filter, lower rollout.max_response_tokens or use a model with a longer context"
        )

    def _text(self, value: Any, loaded: LoadedRows, index: int) -> str | Messages:
        """Return the prompt as rewards will see it: plain text, or chat messages with the system prompt."""
        config = self._config
        if isinstance(value, str):
            if self._around is not None:
                value = self._put_around(self._around, value, loaded, index)
            if not config.chat_template:
                if config.system_prompt is not None:
                    raise ConfigError(
                        f"{loaded.where(index)}: data.system_prompt needs chat messages, and this prompt is text: set "
                        "data.chat_template=true"
                    )
                return value
            messages = [{"role": "user", "content": value}]
        elif isinstance(value, list) and value and all(_is_message(message) for message in value):
            # Other keys go: `datasets` fills the keys of one row into all others, with None.
            messages = [{"role": message["role"], "content": message["content"]} for message in value]
        else:
            raise DataError(
                f"{loaded.where(index)}: column '{config.prompt_column}' is neither a string nor a list of messages "
                f"{{role: ..., content: ...}}: it is {type(value).__name__}"
            )
        # A system message in the data wins over the option.
        if config.system_prompt is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": config.system_prompt}, *messages]
        return messages

    def _put_around(self, template: Template, value: str, loaded: LoadedRows, index: int) -> str:
        try:
            return template.render(content=value)
        except TemplateError as error:
            raise ConfigError(
                f"{loaded.where(index)}: data.prompt_template cannot be filled in: {error.message}; its only variable "
                "is `content`, the row's prompt"
            ) from error

    def _token_ids(self, text: str | Messages, loaded: LoadedRows, index: int) -> Sequence[int]:
        if isinstance(text, str):
            return list(self._tokenizer(text)["input_ids"])
        if self._tokenizer.chat_template is None:
            raise ConfigError(
                f"{loaded.where(index)}: the prompt is a list of chat messages, but the model's tokenizer has no chat "
                "template: set model.chat_template"
            )
        try:
            rendered = self._tokenizer.apply_chat_template(
                text, tokenize=False, add_generation_prompt=True, **self._config.chat_template_options
            )
        except TemplateError as error:
            roles = [message["role"] for message in text]
            raise ConfigError(
                f"{loaded.where(index)}: the chat template does not take messages with the roles {roles}: {error}"
            ) from error
        # The template holds every special token already: adding them again would double the token that begins a text.
        return list(self._tokenizer(rendered, add_special_tokens=False)["input_ids"])


def _template(option: str) -> Template:
    """Return the template that `data.prompt_template` holds, or that the file of its name holds."""
    text = text_or_file(option, "data.prompt_template")
    try:
        return Environment(undefined=StrictUndefined).from_string(text)
    except TemplateSyntaxError as error:
        raise ConfigError(
            f"data.prompt_template, line {error.lineno}: not a jinja template: {error.message}; its only variable is "
            "`content`, the row's prompt"
        ) from error


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
