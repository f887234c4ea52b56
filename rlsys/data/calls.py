"""Tool calls in a policy's message: found by the form in which its chat template shows earlier ones.

Two forms occur. In the first a call is one JSON object, as `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`
or, of Mistral's models, a list of them behind a mark. In the second the name stands before the JSON of its arguments,
as DeepSeek's models have it. Both are read from a rendering of a known call.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from rlsys.data.chat import KEY, ChatTemplate
from rlsys.errors import ConfigError
from rlsys.types import Messages

NAME, VALUE, OTHER = "rlsys_probe", "rlsys7value", "rlsys8value"
OPENED, CLOSED = "<think>", "</think>"
MAX_CALLS = 64  # of one message
ID_CHARACTERS = 9  # Mistral's templates take no others


@dataclass(frozen=True)
class Call:
    """A tool call; with a `problem` it is not executed, and the policy gets that text as its result."""

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    problem: str | None = None
    id: str = field(default_factory=lambda: uuid.uuid4().hex[:ID_CHARACTERS])

    def as_json(self) -> dict[str, Any]:
        """Return the call as chat templates and OpenAI's interface have it, but for arguments, which stay a mapping."""
        return {"id": self.id, "type": "function", "function": {"name": self.name, "arguments": self.arguments}}


@dataclass(frozen=True)
class CallFormat:
    """How a policy writes tool calls.

    `opener` and `closer` enclose a call, or a list of them, and are empty for models that answer with bare JSON. With a
    `divider` the name stands before it and the arguments behind it.
    """

    opener: str
    closer: str
    divider: str | None = None
    name_key: str = "name"
    arguments_key: str = "arguments"

    @classmethod
    def of(cls, template: ChatTemplate) -> CallFormat:
        """Return the form that a template shows; ConfigError for one that shows no calls."""
        call = {"name": NAME, "arguments": {"one": VALUE, "two": OTHER}}
        question: Messages = [{"role": "user", "content": "1 what?"}]
        calls = [{"id": "a1b2c3d4e", "type": "function", "function": call}]
        rendered = template.whole([*question, {"role": "assistant", "content": "", "tool_calls": calls}])
        end = rendered.find(OTHER)
        start = rendered.rfind(NAME, 0, end) if end >= 0 else -1
        if start < 0:
            raise ConfigError(f"{KEY} does not show tool calls: give one that does")
        return _whole_call(rendered, start, question, template) or _named_call(rendered, start)

    def find(self, text: str, *, is_thinking: bool = False) -> tuple[str, list[Call]]:
        """Return a message's text without its calls, and the calls; an unfinished thought calls nothing.

        Args:
            text: the message, with its special tokens but without the one that ends it.
            is_thinking: whether the prompt had opened a thought already.
        """
        thought, closed, said = text.rpartition(CLOSED)
        if not closed and (is_thinking or OPENED in text):
            return text, []
        found, spoken = self._spans(said)
        calls = [call for body in found for call in self._calls(body)]
        return (thought + closed + spoken if calls else text), calls[:MAX_CALLS]

    def _spans(self, text: str) -> tuple[list[str], str]:
        """Return what stands between opener and closer, and the text without it."""
        if not self.opener:
            is_call = text.lstrip().startswith("{") and f'"{self.name_key}"' in text
            return ([text], "") if is_call else ([], text)
        spoken, *parts = text.split(self.opener)
        bodies = []
        for part in parts:
            body, _, rest = part.partition(self.closer) if self.closer else (part, "", "")
            bodies.append(body)
            spoken += rest
        return bodies, spoken.strip()

    def _calls(self, body: str) -> Iterator[Call]:
        if self.divider is not None:
            name, _, rest = body.partition(self.divider)
            yield self._call(name.strip(), _first_json(rest))
            return
        found = _first_json(body)
        for each in found if isinstance(found, list) else [found]:
            is_object = isinstance(each, dict) and isinstance(each.get(self.name_key), str)
            name = each[self.name_key] if is_object else ""
            yield self._call(name, each.get(self.arguments_key, {}) if is_object else each)

    def _call(self, name: str, arguments: Any) -> Call:
        form = f'{{"{self.name_key}": ..., "{self.arguments_key}": {{...}}}}'
        if self.divider is None and not name:
            return Call("unknown", problem=f"This is no tool call: it must be JSON of the form {form}.")
        if isinstance(arguments, str):  # some models write the arguments as JSON in a text
            arguments = _first_json(arguments)
        if not isinstance(arguments, dict):
            return Call(name, problem="The arguments of this call are no JSON object.")
        return Call(name, arguments)


def _whole_call(rendered: str, start: int, question: Messages, template: ChatTemplate) -> CallFormat | None:
    """Return the form in which a call is one JSON object around its name; None where there is none."""
    decoder = json.JSONDecoder()
    for place in range(start, -1, -1):
        if rendered[place] != "{":
            continue
        try:
            found, end = decoder.raw_decode(rendered, place)
        except ValueError:
            continue
        keys = {json.dumps(value): key for key, value in found.items()}
        arguments = next((key for key, value in found.items() if isinstance(value, dict) and VALUE in str(value)), None)
        if json.dumps(NAME) in keys and arguments is not None:
            head, tail = rendered[:place].rstrip(), rendered[end:].lstrip()
            if head.endswith("[") and tail.startswith("]"):
                head, tail = head[:-1].rstrip(), tail[1:].lstrip()
            asked = template.prompt(question).rstrip()
            opener = "" if asked.endswith(head) or asked == head else _last_tag(head)
            return CallFormat(opener, _first_tag(tail) if opener else "", None, keys[json.dumps(NAME)], arguments)
    return None


def _named_call(rendered: str, start: int) -> CallFormat:
    """Return the form in which the name stands before the JSON of the arguments."""
    brace = rendered.index("{", start)
    _, end = json.JSONDecoder().raw_decode(rendered, brace)
    head, divider = rendered[:start], rendered[start + len(NAME) : brace]
    # Of `TAG function TAG name` the second tag is the divider before a name; what opens a call is the first.
    opener = _last_tag(head.rstrip())
    closer = _first_tag(rendered[end:].lstrip().removeprefix("```").lstrip())
    return CallFormat(opener, closer, divider.strip())


def _last_tag(text: str) -> str:
    """Return the tag at the end of a text: `<...>` or `[...]`."""
    pairs = {">": "<", "]": "["}
    start = text.rfind(pairs[text[-1]]) if text and text[-1] in pairs else -1
    return text[start:] if start >= 0 else ""


def _first_tag(text: str) -> str:
    """Return the tag at the beginning of a text."""
    pairs = {"<": ">", "[": "]"}
    end = text.find(pairs[text[0]]) if text and text[0] in pairs else -1
    return text[: end + 1] if end >= 0 else ""


def _first_json(text: str) -> Any:
    """Return the value of the first JSON object or list in a text, None when there is none that is whole."""
    starts = [place for place in (text.find("{"), text.find("[")) if place >= 0]
    try:
        return json.JSONDecoder().raw_decode(text, min(starts))[0] if starts else None
    except (ValueError, RecursionError):
        return None
