"""A run's rollouts as the page holds them: an index of columns, loaded at once, and texts in chunks, on demand."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlsys.metrics.formatting import finite, short
from rlsys.run_folder.checkpoint import step_of
from rlsys.run_folder.jsonl import json_rows, num_lines

# Size of the texts and tokens that are decompressed together: a few milliseconds in a browser.
CHUNK_CHARACTERS = 300_000

# Returns the text of each token, or None if there is no tokenizer.
Decode = Callable[[Sequence[int]], list[str] | None]

# Columns of the index and the keys of a rollout's row that they come from: numbers, and names from small sets.
NUMBERS = {"length": "response_tokens", "engine": "engine", "version": "policy_version", "group": "group_id"}
NAMES = {"outcome": "outcome", "ended": "finish_reason"}


@dataclass
class Rollouts:
    """A run's rollouts. The index has one value per rollout; names and prompts are positions in their own lists."""

    total: int  # how many the run wrote, also those not shown
    index: dict[str, list[Any]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    prompts: list[Any] = field(default_factory=list)
    chunks: list[str] = field(default_factory=list)  # compressed texts
    starts: list[int] = field(default_factory=list)  # number of each chunk's first rollout
    num_undecoded: int = 0  # rollouts whose tokens could not be decoded
    largest_advantage: float = 0.0  # absolute value, over rollouts and tokens


class Collector:
    """A builder of `Rollouts`, row by row; only the index and compressed texts stay in memory."""

    def __init__(self, total: int, decode: Decode, compress: Callable[[Any], str]) -> None:
        """Start with no rollouts.

        Args:
            total: how many the run wrote.
            decode: gives the texts of token ids.
            compress: makes one string of a chunk of texts.
        """
        self.rollouts = Rollouts(total)
        self._decode = decode
        self._compress = compress
        self._positions: dict[str, dict[str, int]] = {}
        self._texts: list[dict[str, Any]] = []
        self._size = 0
        self._count = 0

    def add(self, step: int, row: dict[str, Any]) -> None:
        """Add one rollout of a step."""
        if not self._texts:
            self.rollouts.starts.append(self._count)
        text = self._text(row)
        line = {
            "step": step,
            "reward": short(row.get("reward")),
            "advantage": short(row.get("advantage")),
            "prompt": self._position("prompt", _prompt(row.get("prompt")), self.rollouts.prompts),
            "tokens": int("tokens" in text),
            **{name: _integer(row.get(key)) for name, key in NUMBERS.items()},
            **{name: self._named(name, row.get(key)) for name, key in NAMES.items()},
        }
        for name, value in line.items():
            self.rollouts.index.setdefault(name, []).append(value)
        self._measure(line["advantage"], *text.get("tokens", {}).get("advantages", ()))
        self._texts.append(text)
        # A rough size: a token's piece with its numbers is about 12 characters, the rest of a row about 100.
        self._size += len(text["response"]) + 12 * len(text.get("tokens", {}).get("pieces", ())) + 100
        self._count += 1
        if self._size > CHUNK_CHARACTERS:
            self.close()

    def close(self) -> None:
        """Compress the texts that wait for a full chunk."""
        if self._texts:
            self.rollouts.chunks.append(self._compress(self._texts))
        self._texts, self._size = [], 0

    def _measure(self, *advantages: float | None) -> None:
        sizes = [abs(value) for value in advantages if value is not None]
        self.rollouts.largest_advantage = max(self.rollouts.largest_advantage, *sizes, 0.0)

    def _named(self, column: str, name: Any) -> int:
        names = self.rollouts.names.setdefault(column, [])
        return self._position(column, "unknown" if name is None else str(name), names)

    def _position(self, column: str, value: Any, values: list[Any]) -> int:
        """Return the position of `value` in `values`, where it is added if it is new."""
        positions = self._positions.setdefault(column, {})
        key = value if isinstance(value, str) else json.dumps(value)
        if key not in positions:
            positions[key] = len(values)
            values.append(value)
        return positions[key]

    def _text(self, row: dict[str, Any]) -> dict[str, Any]:
        text: dict[str, Any] = {"response": _conversation(row.get("episode")) or _string(row.get("response"))}
        parts = row.get("parts")
        if isinstance(parts, dict):
            text["parts"] = [[name, *_part(part)] for name, part in parts.items()]
        if row.get("extra"):
            text["extra"] = json.dumps(row["extra"], ensure_ascii=False, default=str)
        started, finished = finite(row.get("started")), finite(row.get("finished"))
        if started is not None and finished is not None:
            text["seconds"] = short(finished - started, 4)
        tokens = row.get("tokens")
        if isinstance(tokens, dict) and _is_complete(tokens):
            self._add_tokens(text, tokens)
        return text

    def _add_tokens(self, text: dict[str, Any], tokens: dict[str, Any]) -> None:
        pieces = self._decode(tokens["ids"])
        if pieces is None:
            self.rollouts.num_undecoded += 1
            return
        shown = {"pieces": pieces, "logprobs": [short(value, 4) for value in tokens["logprobs"]]}
        if tokens.get("advantages"):
            shown["advantages"] = [short(value, 4) for value in tokens["advantages"]]
        text["tokens"] = shown


def collect(files: Sequence[Path], limit: int, decode: Decode, compress: Callable[[Any], str]) -> Rollouts:
    """Return at most `limit` rollouts, in whole groups and spread evenly over the steps.

    Of each step they are the first groups, which are the ones that a run writes with their tokens.

    Args:
        files: the rollouts of each step.
        limit: the most rollouts to return.
        decode: gives the texts of token ids.
        compress: makes one string of a chunk of texts.

    Raises:
        DataError: a file is not readable.
    """
    sizes = [num_lines(file) for file in files]
    collector = Collector(sum(sizes), decode, compress)
    for file, count in zip(files, rollouts_per_step(sizes, limit, _group_size(files)), strict=True):
        step = step_of(file)
        for group in _groups(file, count):
            for row in group:
                collector.add(step, row)
    collector.close()
    return collector.rollouts


def rollouts_per_step(sizes: Sequence[int], limit: int, group_size: int) -> list[int]:
    """Return how many rollouts to take of each step.

    All, if they are at most `limit`, else equally many; if not every step can have a group, of evenly spaced steps that
    include the last.
    """
    chosen = list(range(len(sizes)))
    max_steps = max(limit // group_size, 1)
    if sum(sizes) > limit and len(chosen) > max_steps:
        gap = (len(sizes) - 1) / max(max_steps - 1, 1)
        chosen = sorted({len(sizes) - 1 - round(i * gap) for i in range(max_steps)})
    taken, left = [0] * len(sizes), limit
    # The smallest first: what a small step cannot use is divided among the others.
    for rank, step in enumerate(sorted(chosen, key=sizes.__getitem__)):
        taken[step] = min(sizes[step], left // (len(chosen) - rank))
        left -= taken[step]
    return taken


def _groups(file: Path, count: int) -> Iterator[list[dict[str, Any]]]:
    """Yield whole groups from the start of a step's file while they fit into `count` rows; at least one if not 0."""
    taken = 0
    group: list[dict[str, Any]] = []
    for _, row in json_rows(file) if count else ():
        if group and row.get("group_id") != group[0].get("group_id"):
            yield group
            taken, group = taken + len(group), []
        if taken and taken + len(group) >= count:  # the group is not complete yet, and would already be too many
            return
        group.append(row)
    if group:
        yield group


def _group_size(files: Sequence[Path]) -> int:
    """Return the size of the last step's first group."""
    return len(next(_groups(files[-1], 1), [])) or 1 if files else 1


def _is_complete(tokens: dict[str, Any]) -> bool:
    """Return whether the columns of a response's tokens are lists of one length."""
    columns = [tokens.get("ids"), tokens.get("logprobs"), tokens.get("advantages") or tokens.get("ids")]
    lengths = {len(values) if isinstance(values, list) else None for values in columns}
    return len(lengths) == 1 and None not in lengths


def _conversation(episode: Any) -> str:
    """Return an episode's messages as text, with its end and what each turn got; "" for what is none."""
    if not isinstance(episode, dict) or not isinstance(episode.get("messages"), list):
        return ""
    lines, turns = [], iter(episode.get("turns") or ())
    for message in episode["messages"]:
        role, calls = message.get("role"), message.get("tool_calls") or ()
        reward = (next(turns, None) or {}).get("reward") if role == "assistant" else None
        lines.append(f"[{role}{'' if reward is None else f', reward {reward:g}'}] {_string(message.get('content'))}")
        lines += [f"    calls {json.dumps(call.get('function'), ensure_ascii=False)}" for call in calls]
    detail = _string(episode.get("detail"))
    return "\n".join([*lines, f"[end: {episode.get('end')}{': ' + detail if detail else ''}]"])


def _prompt(prompt: Any) -> Any:
    """Return a prompt as text, or as chat messages `[role, text]`."""
    if isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt):
        return [[_string(message.get("role")), _string(message.get("content"))] for message in prompt]
    return _string(prompt)


def _part(part: Any) -> tuple[float | None, str, str]:
    if not isinstance(part, dict):
        return short(part), "", ""
    return short(part.get("value")), _string(part.get("outcome")), _string(part.get("detail"))


def _integer(value: Any) -> int | None:
    number = finite(value)
    return None if number is None else int(number)


def _string(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
