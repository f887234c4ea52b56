"""Encoding of rows as prompts: chat messages, templates, token ids, and the check of their lengths."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
from jinja2 import Template

from rlsys.config.schema import DataConfig
from rlsys.config.templates import jinja_template, text_or_file
from rlsys.data import Row
from rlsys.data.chat import ChatTemplate
from rlsys.data.loading import LoadedRows
from rlsys.errors import ConfigError, DataError, RlsysError, nearest
from rlsys.types import Messages, Prompt

AROUND = "data.prompt_template"
ROWS_AT_ONCE = 1000  # that are tokenised in one call


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

    def __init__(self, tokenizer: Any, config: DataConfig, *, max_prompt_tokens: int, vocab_rows: int) -> None:
        """Keep the tokenizer and the options.

        Args:
            tokenizer: the policy's.
            config: the options of `data`.
            max_prompt_tokens: length of the longest prompt that is accepted.
            vocab_rows: number of token ids that the model has an embedding for.
        """
        self._tokenizer = tokenizer
        self._config = config
        self._max_prompt_tokens = max_prompt_tokens
        self._vocab_rows = vocab_rows
        self._around = None if config.prompt_template is None else _around(config.prompt_template)

    def encode(self, loaded: LoadedRows, first_index: int = 0) -> tuple[list[Prompt], int]:
        """Return the prompts, numbered from `first_index`, and the number of rows that were left out as too long.

        Raises:
            DataError: a row's prompt is not a text or a conversation, or is empty, or the model lacks one of its
                tokens; and with `data.overlong=refuse` one that is too long.
            ConfigError: a template does not take a row.
        """
        prompts: list[Prompt] = []
        for index, row, text, ids in self._tokenised(loaded):
            with _located(loaded, index):
                self._check_ids(ids)
                columns = {key: value for key, value in row.items() if key != self._config.prompt_column}
                prompt = Prompt(first_index + len(prompts), text, ids, columns)
                if self._fits(prompt):
                    prompts.append(prompt)
        if not prompts:
            raise DataError(
                f"data '{loaded.source.name}': all prompts are longer than {self._max_prompt_tokens} tokens: raise "
                "data.max_prompt_tokens, lower rollout.max_response_tokens or use a model with a longer context"
            )
        return prompts, len(loaded.rows) - len(prompts)

    def end_of_turn(self) -> int | None:
        """Return the token that ends an assistant's message in the chat template; see `ChatTemplate.end_of_turn`."""
        return self._chat.end_of_turn()

    @cached_property
    def _chat(self) -> ChatTemplate:
        return ChatTemplate(self._tokenizer, self._config.chat_template_options)

    def _tokenised(self, loaded: LoadedRows) -> Iterator[tuple[int, Row, str | Messages, np.ndarray]]:
        """Yield each row's number, the row, its prompt and the prompt's token ids."""
        numbered = enumerate(loaded.rows)
        while part := list(itertools.islice(numbered, ROWS_AT_ONCE)):
            texts = []
            for index, row in part:
                with _located(loaded, index):
                    texts.append(self._checked(self._text(row[self._config.prompt_column])))
            for (index, row), (text, _), ids in zip(part, texts, self._token_ids(texts), strict=True):
                yield index, row, text, ids

    def _fits(self, prompt: Prompt) -> bool:
        size = len(prompt.token_ids)
        if size == 0:
            raise DataError(
                f"the prompt has 0 tokens, and sampling needs one to begin with: remove the row, or fill its column "
                f"'{self._config.prompt_column}'"
            )
        if size <= self._max_prompt_tokens:
            return True
        if self._config.overlong == "filter":
            return False
        raise DataError(
            f"the prompt has {size} tokens, 1 to {self._max_prompt_tokens} are possible (data.max_prompt_tokens, or "
            "what the context leaves beside the longest response). Leave such rows out with data.overlong=filter, "
            "lower rollout.max_response_tokens or use a model with a longer context"
        )

    def _text(self, value: Any) -> str | Messages:
        """Return the prompt as rewards will see it: plain text, or chat messages with the system prompt."""
        config = self._config
        if isinstance(value, str):
            if self._around is not None:
                value = _put_around(self._around, value)
            if not config.chat_template:
                if config.system_prompt is not None:
                    raise ConfigError(
                        "data.system_prompt needs chat messages, and this prompt is text: set data.chat_template=true"
                    )
                return value
            messages = [{"role": "user", "content": value}]
        elif isinstance(value, list) and value and all(_is_message(message) for message in value):
            # `datasets` fills the keys of one row, such as `tool_calls`, into all others, with None.
            messages = [{key: one for key, one in message.items() if one is not None} for message in value]
        else:
            wrong = next((one for one in value if not _is_message(one)), value) if isinstance(value, list) else value
            raise DataError(
                f"column '{config.prompt_column}' is neither a string nor a list of messages "
                f"{{role: ..., content: ...}} whose content is text: it is, or holds, {type(wrong).__name__} "
                f"{str(wrong)[:100]}"
            )
        # A system message in the data wins over the option.
        if config.system_prompt is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": config.system_prompt}, *messages]
        return messages

    def _checked(self, text: str | Messages) -> tuple[str | Messages, str]:
        """Return a prompt and what is tokenised of it."""
        rendered = text if isinstance(text, str) else self._rendered(text)
        try:
            rendered.encode("utf-8")
        except UnicodeEncodeError as error:
            raise DataError(
                f"the prompt holds half a character, {rendered[error.start]!r}, which is no text: of a character's two "
                "\\u escapes in JSON (an emoji has two) one is missing"
            ) from error
        return text, rendered

    def _token_ids(self, texts: Sequence[tuple[str | Messages, str]]) -> list[np.ndarray]:
        """Return the token ids of each text, [L] int32; many at once, which is ten times as fast as one by one."""
        ids: dict[int, np.ndarray] = {}
        # A chat template holds every special token already: adding them again would double the one that begins a text.
        for is_plain in (True, False):
            places = [place for place, (text, _) in enumerate(texts) if isinstance(text, str) is is_plain]
            if places:
                found = self._tokenizer([texts[place][1] for place in places], add_special_tokens=is_plain)["input_ids"]
                ids |= zip(places, (np.array(row, dtype=np.int32) for row in found), strict=True)
        return [ids[place] for place in range(len(texts))]

    def _check_ids(self, ids: np.ndarray) -> None:
        unknown = ids[ids >= self._vocab_rows]
        if unknown.size:
            token = self._tokenizer.convert_ids_to_tokens(int(unknown[0]))
            raise DataError(
                f"the prompt has the token {token!r} (id {unknown[0]}), which the model lacks: its embedding has "
                f"{self._vocab_rows} rows. Resize the embedding (model.resize_token_embeddings) and save the model, or "
                "use the tokenizer that it was trained with"
            )

    def _rendered(self, messages: Messages) -> str:
        if messages[-1]["role"] != "assistant":
            return self._chat.prompt(messages)
        if self._config.continue_final_message:
            return self._chat.continued(messages)
        raise DataError(
            "the last message of the prompt is the assistant's. If it is the answer, remove it; if the response should "
            "continue it, set data.continue_final_message=true"
        )


@contextlib.contextmanager
def _located(loaded: LoadedRows, index: int) -> Iterator[None]:
    """Name the row in errors about it."""
    try:
        yield
    except RlsysError as error:
        raise type(error)(f"{loaded.where(index)}: {error}") from error


def _around(option: str) -> Template:
    """Return the template that `data.prompt_template` holds, or that the file of its name holds."""
    return jinja_template(text_or_file(option, AROUND, variable="content"), AROUND, variable="content")


def _put_around(template: Template, value: str) -> str:
    try:
        return template.render(content=value)
    except Exception as error:  # a template runs code: it may raise anything
        raise ConfigError(
            f"{AROUND} cannot be filled in: {type(error).__name__}: {error}; its only variable is "
            "`content`, the row's prompt"
        ) from error


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
