"""Rows from a registered source, a file or a `datasets` name; prompts from rows."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import TemplateError

from rlsys.config import DataConfig
from rlsys.data import Row, registry
from rlsys.errors import ConfigError, DataError, nearest
from rlsys.types import Messages, Prompt

READERS = {".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv", ".txt": "text"}


def load_rows(name: str, split: str, config: DataConfig) -> list[Row]:
    """Rows of `name`: a registered source, a file, or a dataset name; `config.options` go to whichever it is.

    Raises ConfigError when there is no such source, DataError when a file cannot be read.
    """
    if name in registry.names() or ":" in name:
        return registry.bind(name, config.options)(split)
    import datasets

    path = Path(name).expanduser()
    suffix = path.suffix.lower()
    try:
        if suffix in READERS:
            if not path.is_file():
                raise ConfigError(f"data: no such file: {path.resolve()}")
            rows = datasets.load_dataset(READERS[suffix], data_files=str(path), split="train", **config.options)
        else:
            rows = datasets.load_dataset(name, split=split, **config.options)
    except ConfigError:
        raise
    except Exception as error:
        known = registry.names()
        raise DataError(
            f"data '{name}' cannot be read as a registered source ({nearest(name, known)}), a "
            f"{'/'.join(sorted(READERS))} file or a datasets name: {type(error).__name__}: {error}"
        ) from error
    return list(rows)


def check_rows(rows: Sequence[Row], name: str, prompt_column: str) -> None:
    """Raise DataError when there are no rows, or naming the first one without a prompt."""
    if not rows:
        raise DataError(f"data '{name}' has no rows")
    for index, row in enumerate(rows):
        if row.get(prompt_column) is None:
            available = [key for key, value in row.items() if value is not None]
            raise DataError(
                f"{name}, row {index + 1}: no prompt column '{prompt_column}'; the row has: {', '.join(available)}. "
                f"Set data.prompt_column ({nearest(prompt_column, available)})"
            )


class PromptEncoder:
    """Rows to prompts: message building, chat template, token ids, length check."""

    def __init__(self, tokenizer: Any, config: DataConfig) -> None:
        self._tokenizer = tokenizer
        self._config = config

    def encode(self, rows: Sequence[Row], name: str, max_prompt_tokens: int) -> list[Prompt]:
        """Tokenise checked rows of `name`. Raises DataError naming the row whose prompt is no text or too long."""
        return [self._encode_row(row, index, name, max_prompt_tokens) for index, row in enumerate(rows)]

    def _encode_row(self, row: Row, index: int, name: str, max_prompt_tokens: int) -> Prompt:
        column = self._config.prompt_column
        text = self._text(row[column], name, index)
        token_ids = self._token_ids(text)
        if len(token_ids) > max_prompt_tokens or not token_ids:
            raise DataError(
                f"{name}, row {index + 1}: the prompt has {len(token_ids)} tokens, the context leaves 1 to "
                f"{max_prompt_tokens} beside rollout.max_response_tokens; shorten it, lower "
                "rollout.max_response_tokens or use a model with a longer context"
            )
        columns = {key: value for key, value in row.items() if key != column}
        return Prompt(index=index, text=text, token_ids=np.array(token_ids, dtype=np.int32), columns=columns)

    def _text(self, value: Any, name: str, index: int) -> str | Messages:
        if isinstance(value, str):
            if not self._config.chat_template:
                if self._config.system_prompt is not None:
                    raise ConfigError("data.system_prompt needs chat messages: set data.chat_template=true")
                return value
            messages = [{"role": "user", "content": value}]
        elif isinstance(value, list) and value and all(_is_message(m) for m in value):
            messages = [{"role": m["role"], "content": m["content"]} for m in value]
        else:
            raise DataError(
                f"{name}, row {index + 1}: column '{self._config.prompt_column}' is neither a string nor a list of "
                f"{{role, content}} messages but {type(value).__name__}"
            )
        if self._config.system_prompt is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self._config.system_prompt}, *messages]
        return messages

    def _token_ids(self, text: str | Messages) -> list[int]:
        if isinstance(text, str):
            return list(self._tokenizer(text)["input_ids"])
        if self._tokenizer.chat_template is None:
            raise ConfigError("the prompts are chat messages but the model's tokenizer has no chat template")
        try:
            rendered = self._tokenizer.apply_chat_template(text, tokenize=False, add_generation_prompt=True)
        except TemplateError as error:
            roles = [message["role"] for message in text]
            raise ConfigError(f"the model's chat template refuses messages of the roles {roles}: {error}") from error
        # The template already holds every special token: adding them again would double the BOS.
        return list(self._tokenizer(rendered, add_special_tokens=False)["input_ids"])


class PromptStream:
    """Endless prompts in an order that depends on the seed alone.

    A place in it says which prompt. A checkpoint holds the cursor, which is the first place never handed out, and the
    places handed out whose prompts were not trained yet: those come first again.
    """

    def __init__(
        self, prompts: Sequence[Prompt], *, seed: int, shuffle: bool, cursor: int = 0, pending: Sequence[int] = ()
    ) -> None:
        self._prompts = prompts
        self._seed = seed
        self._shuffle = shuffle
        self.cursor = cursor
        self._pending = deque(sorted(pending))
        self._epoch = -1
        self._order = np.arange(len(prompts))

    def take(self) -> tuple[int, Prompt]:
        """The next place and its prompt; a new epoch is a new shuffle."""
        if self._pending:
            place = self._pending.popleft()
        else:
            place, self.cursor = self.cursor, self.cursor + 1
        return place, self._at(place)

    @property
    def pending(self) -> list[int]:
        """Places given at the start that have not come again yet."""
        return list(self._pending)

    def _at(self, place: int) -> Prompt:
        epoch, position = divmod(place, len(self._prompts))
        if self._shuffle and epoch != self._epoch:
            self._order = np.random.default_rng([self._seed, epoch]).permutation(len(self._prompts))
            self._epoch = epoch
        return self._prompts[int(self._order[position])]


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str) and isinstance(value.get("content"), str)
