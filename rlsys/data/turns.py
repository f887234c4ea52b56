"""The tokens between a policy's messages: what was sampled stays as it is, and only new messages are rendered.

A conversation that was decoded, rendered as a whole and tokenised again would have other tokens than those that were
sampled: templates trim messages and drop earlier thoughts, and a text has many tokenisations. Here the next prompt is
the ids so far, and behind them the tokens of the template's text from the end of the policy's message on.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from rlsys.data.chat import KEY, MARK, ChatTemplate, special_tokens
from rlsys.errors import ConfigError
from rlsys.types import Messages

# A character for private use, put into contents where they look like a special token; pieces beside it are tokenised
# apart, so that no content can end its message.
BREAK = "\ue0b7"
Tools = Sequence[dict[str, Any]] | None
TRIAL_TOOL = {
    "type": "function",
    "function": {
        "name": "look_up",
        "description": "Look something up.",
        "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string", "description": "What to look up."}},
            "required": ["word"],
        },
    },
}
TRIAL_CALL = {"id": "a1b2c3d4e", "type": "function", "function": {"name": "look_up", "arguments": {"word": "sun"}}}


class Turns:
    """What a chat template puts before, between and behind the messages of a conversation, as token ids."""

    def __init__(self, template: ChatTemplate, tokenizer: Any) -> None:
        self._template = template
        self._tokenizer = tokenizer
        self._special = special_tokens(tokenizer)
        self._by_text = {text: number for number, text in self._special.items()}

    def check(self, *, has_tools: bool) -> None:
        """Raise ConfigError when the template cannot render a second turn, or tools and their results."""
        question, answer = {"role": "user", "content": "1 what?"}, {"role": "assistant", "content": "so"}
        if not has_tools:
            self.between([question], answer, [{"role": "user", "content": "2 and then?"}], None, last=None)
            return
        if TRIAL_TOOL["function"]["name"] not in self._template.prompt([question], [TRIAL_TOOL]):  # type: ignore[index]
            raise ConfigError(
                f"{KEY} does not show tools to the policy: give one that uses `tools`, or describe them in "
                "data.system_prompt and let your environment read the calls"
            )
        called = {**answer, "tool_calls": [TRIAL_CALL]}
        result = {"role": "tool", "name": "look_up", "tool_call_id": TRIAL_CALL["id"], "content": "a star"}
        self.between([question], called, [result], [TRIAL_TOOL], last=None)

    def keeps_answers(self) -> bool:
        """Return whether the template shows an earlier answer with its thought as it was given."""
        question, answer = {"role": "user", "content": "1 what?"}, "<think>\nwell\n</think>\n\nso"
        opened = self._template.prompt([question])
        later = [question, {"role": "assistant", "content": answer}, {"role": "user", "content": "2 and then?"}]
        thought = answer.partition("<think>\n")[2] if opened.endswith("<think>\n") else answer
        shown = self._template.prompt(later)
        return shown.startswith(opened) and shown.removeprefix(opened).lstrip().startswith(thought)

    def opening(self, messages: Messages, tools: Tools) -> np.ndarray:
        """Return the ids that ask for the policy's first message, [L] int32."""
        return np.array(self._ids(self._template.prompt(self._broken(messages), tools), None), dtype=np.int32)

    def between(
        self, before: Messages, message: dict[str, Any], new: Messages, tools: Tools, *, last: int | None
    ) -> np.ndarray:
        """Return the ids that follow the policy's message, up to where its next one begins, [L] int32.

        Args:
            before: the conversation before the message.
            message: the policy's message, with its tool calls; its content is not rendered.
            new: the messages that answer it.
            tools: the tools, as they were shown in the opening.
            last: the last id that was sampled.

        Raises:
            ConfigError: the template does not take such messages, or does not show them.
        """
        new = self._broken(new)
        text = self._by_mark(before, new, tools) or self._by_calls(before, message, new, tools)
        if text is None:
            roles = [one["role"] for one in new]
            raise ConfigError(f"{KEY} does not show messages of the roles {roles} behind an answer of the policy")
        ended = self._special.get(last) if last is not None else None
        if ended is not None and text.lstrip().startswith(ended):
            return np.array(self._ids(text.lstrip().removeprefix(ended), last), dtype=np.int32)
        return np.array(self._ids(text, last), dtype=np.int32)

    def _by_mark(self, before: Messages, new: Messages, tools: Tools) -> str | None:
        """Return the text behind the policy's message, found by a mark in place of its words."""
        try:
            rendered = self._template.prompt([*before, {"role": "assistant", "content": MARK}, *new], tools)
        except ConfigError:  # results of tools without a call, for some templates
            return None
        _, found, text = rendered.rpartition(MARK)
        return text if found and _shows(text, new) else None

    def _by_calls(self, before: Messages, message: dict[str, Any], new: Messages, tools: Tools) -> str | None:
        """Return the text behind the policy's tool calls, found by rendering with and without what answers them."""
        if not message.get("tool_calls"):
            return None
        called = [*before, {"role": "assistant", "content": "", "tool_calls": message["tool_calls"]}]
        whole, answered = self._template.whole(called, tools), self._template.prompt([*called, *new], tools)
        ended = next((text for text in self._by_text if whole.rstrip().endswith(text)), "")
        text = ended + whole[len(whole.rstrip()) :] + answered.removeprefix(whole)
        return text if answered.startswith(whole) and _shows(text, new) else None

    def _broken(self, messages: Messages) -> Messages:
        """Return messages in whose contents nothing is read as a special token."""
        return [{**one, "content": self._without_special(as_text(one.get("content")))} for one in messages]

    def _without_special(self, content: str) -> str:
        content = content.replace(BREAK, "")
        for text in self._by_text:
            if len(text) > 1 and text in content:
                content = content.replace(text, f"{text[0]}{BREAK}{text[1:]}")
        return content

    def _ids(self, text: str, last: int | None) -> list[int]:
        """Return the ids of a text; where it follows a special token, as they are behind that."""
        first, *others = text.split(BREAK)
        opened = self._special.get(last, "") if last is not None else ""
        ids = self._tokenised(opened + first)
        if opened:
            ids = ids[1:] if ids[:1] == [last] else self._tokenised(first)
        for piece in others:
            ids += self._tokenised(piece)
        return ids

    def _tokenised(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False)["input_ids"])


def as_text(content: Any) -> str:
    """Return a message's content as text: it may be None beside tool calls, or a list of blocks."""
    if isinstance(content, list):
        return "".join(str(block.get("text", "")) if isinstance(block, dict) else str(block) for block in content)
    return "" if content is None else str(content)


def _shows(text: str, messages: Messages) -> bool:
    """Return whether a text holds the content of every message, as it is or as JSON has it."""
    contents = [message["content"].strip() for message in messages]
    return all(one in text or json.dumps(one, ensure_ascii=False)[1:-1] in text for one in contents)
