"""Rendering of chat messages with the tokenizer's template, checked: what a template cannot do is refused."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any

from rlsys.config.templates import unused
from rlsys.errors import ConfigError
from rlsys.types import Messages

KEY = "the chat template (model.chat_template, else the tokenizer's own)"
# A message that no template contains, to find the place of a content in a rendered conversation.
MARK = "rlsys7content"
# Two questions that a template is tried with: other words, lengths and numbers.
TRIALS = ("1", "twenty-three 23")
TAG = re.compile(r"<[^<>]*>")
OPENING = re.compile(r"(\s*<[^<>]*>)*\s*$")  # the tags at the end of a prompt, such as `<think>\n`


class ChatTemplate:
    """A tokenizer's chat template with the variables of `data.chat_template_options`.

    Raises ConfigError for a tokenizer without a template, and for a template that does not use the messages.
    """

    def __init__(self, tokenizer: Any, options: Mapping[str, Any]) -> None:
        self._tokenizer = tokenizer
        self._options = dict(options)
        if tokenizer.chat_template is None:
            raise ConfigError(
                "the prompt is a list of chat messages, but the model's tokenizer has no chat template: set "
                "model.chat_template"
            )
        # Arguments of the call are not variables of the template; `tools` and `documents` are both.
        call = inspect.signature(tokenizer.apply_chat_template).parameters.keys() - {"tools", "documents", "kwargs"}
        for name in options:
            if name in {"messages", *call}:
                raise ConfigError(f"data.chat_template_options: {name} cannot be set: it is no variable of a template")
        self._check_uses_messages()

    def prompt(self, messages: Messages, tools: Sequence[dict[str, Any]] | None = None) -> str:
        """Return the text that asks for the assistant's next message. Raise ConfigError when it takes no such roles.

        To many templates `tools=[]` is not None: they announce tools, and then list none.
        """
        return self._render(messages, tools, add_generation_prompt=True)

    def whole(self, messages: Messages, tools: Sequence[dict[str, Any]] | None = None) -> str:
        """Return the text of a conversation that asks for nothing more; raises what `prompt` does."""
        return self._render(messages, tools)

    def continued(self, messages: Messages) -> str:
        """Return the text up to the end of the last message, the assistant's, which the response continues.

        Raises:
            ConfigError: as `prompt`, and for a template that changes the message.
        """
        opened, prefill = self.prompt(messages[:-1]), messages[-1]["content"]
        rendered = self._render(messages, None, continue_final_message=True)
        if rendered.endswith(prefill.rstrip()):  # templates that trim their messages take its last line break too
            rendered = rendered.removesuffix(prefill.rstrip()) + prefill
        asked = OPENING.sub("", opened)
        opening, first = opened.removeprefix(asked), TAG.match(prefill)
        if first and first[0] in opening:  # the message opens the thought itself, and once is enough
            opened = asked + opening.partition(first[0])[0]
        head = rendered.removesuffix(prefill).rstrip()
        # Not without the question, which a template that shows the last message alone would lose.
        if rendered.endswith(prefill) and opened.startswith(head) and head.startswith(asked):
            return rendered  # where the template opens an answer with `<think>`, that belongs to the message
        if rendered.endswith(prefill) and head.startswith(opened.rstrip()):
            return opened + prefill  # without what a finished answer begins with, as an empty thought
        raise ConfigError(
            f"{KEY} does not continue the message {prefill[:80]!r}: it ends the prompt with {rendered[-80:]!r}, and "
            f"opens an answer with {opened[-40:]!r}. Remove this message, or give a template that keeps it"
        )

    def end_of_turn(self) -> int | None:
        """Return the special token that the template puts behind an assistant's message, or None when it puts none."""
        try:
            _, found, rest = self._render([*_question("1"), {"role": "assistant", "content": MARK}]).rpartition(MARK)
        except ConfigError:  # a template for single questions: it has no end of an answer
            return None
        ids = self._tokenizer(rest.lstrip(), add_special_tokens=False)["input_ids"] if found else []
        return int(ids[0]) if ids and ids[0] in special_tokens(self._tokenizer) else None

    def _check_uses_messages(self) -> None:
        try:
            texts = {self.prompt(_question(value)) for value in TRIALS}
        except ConfigError:  # that proves nothing: left to the first real prompt, whose row can be named
            return
        if len(texts) == 1:
            raise unused("messages", str(self._tokenizer.chat_template), KEY)

    def _render(self, messages: Messages, tools: Sequence[dict[str, Any]] | None = None, **how: bool) -> str:
        given = {} if tools is None else {"tools": list(tools)}
        try:
            return str(self._tokenizer.apply_chat_template(messages, tokenize=False, **given, **how, **self._options))
        except Exception as error:  # a template runs code: it may raise anything
            roles = [message["role"] for message in messages]
            raise ConfigError(
                f"{KEY} does not take messages with the roles {roles}: {type(error).__name__}: {error}"
            ) from error


def _question(content: str) -> Messages:
    return [{"role": "user", "content": content}]


def special_tokens(tokenizer: Any) -> dict[int, str]:
    """Return the text of every special token, by its id."""
    added = {number: str(token) for number, token in tokenizer.added_tokens_decoder.items() if token.special}
    return added | dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
