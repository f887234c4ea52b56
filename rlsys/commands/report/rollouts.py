"""A run's rollouts as the page holds them: an index of columns, read at once, and texts in chunks, read as needed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rlsys.run_folder.reading import finite, json_rows, last_number, short

CHUNK_CHARACTERS = 300_000
"""Of texts and tokens that are unpacked together: a few milliseconds in a browser."""

Decode = Callable[[Sequence[int]], list[str] | None]
"""From ids to pieces of text, or None where nothing can read them."""
Row = dict[str, Any]

NUMBERS = {"length": "response_tokens", "engine": "engine", "version": "policy_version", "group": "group_id"}
NAMES = {"outcome": "outcome", "ended": "finish_reason"}


@dataclass
class Rollouts:
    """`index` is columns, a value a rollout; names and prompts stand there by their places in lists of their own."""

    total: int  # that the run wrote
    index: dict[str, list[Any]] = field(default_factory=dict)
    names: dict[str, list[str]] = field(default_factory=dict)
    prompts: list[Any] = field(default_factory=list)
    chunks: list[str] = field(default_factory=list)  # packed
    starts: list[int] = field(default_factory=list)  # number of each chunk's first rollout
    num_undecoded: int = 0  # with tokens that nothing could read
    largest_advantage: float = 0.0  # by size, of rollouts and of tokens


class Collector:
    """Takes rows one after the other; memory holds the index and packed texts."""

    def __init__(self, total: int, decode: Decode, pack: Callable[[Any], str]) -> None:
        self.rollouts = Rollouts(total)
        self._decode = decode
        self._pack = pack
        self._places: dict[str, dict[str, int]] = {}
        self._texts: list[Row] = []
        self._size = 0
        self._count = 0

    def add(self, step: int, row: Row) -> None:
        """One rollout of a step."""
        if not self._texts:
            self.rollouts.starts.append(self._count)
        text = self._text(row)
        line = {
            "step": step,
            "reward": short(row.get("reward")),
            "advantage": short(row.get("advantage")),
            "prompt": self._place("prompt", _prompt(row.get("prompt")), self.rollouts.prompts),
            "tokens": int("tokens" in text),
            **{name: _whole(row.get(key)) for name, key in NUMBERS.items()},
            **{name: self._named(name, row.get(key)) for name, key in NAMES.items()},
        }
        for name, value in line.items():
            self.rollouts.index.setdefault(name, []).append(value)
        self._measure(line["advantage"], *text.get("tokens", {}).get("advantages", ()))
        self._texts.append(text)
        self._size += len(text["response"]) + 12 * len(text.get("tokens", {}).get("pieces", ())) + 100
        self._count += 1
        if self._size > CHUNK_CHARACTERS:
            self.close()

    def close(self) -> None:
        """Pack what is waiting."""
        if self._texts:
            self.rollouts.chunks.append(self._pack(self._texts))
        self._texts, self._size = [], 0

    def _measure(self, *advantages: float | None) -> None:
        sizes = [abs(value) for value in advantages if value is not None]
        self.rollouts.largest_advantage = max(self.rollouts.largest_advantage, *sizes, 0.0)

    def _named(self, column: str, name: Any) -> int:
        return self._place(column, "unknown" if name is None else str(name), self.rollouts.names.setdefault(column, []))

    def _place(self, column: str, value: Any, values: list[Any]) -> int:
        places = self._places.setdefault(column, {})
        key = value if isinstance(value, str) else json.dumps(value)
        if key not in places:
            places[key] = len(values)
            values.append(value)
        return places[key]

    def _text(self, row: Row) -> Row:
        text: Row = {"response": _string(row.get("response"))}
        parts = row.get("parts")
        if isinstance(parts, dict):
            text["parts"] = [[name, *_part(part)] for name, part in parts.items()]
        if row.get("extra"):
            text["extra"] = json.dumps(row["extra"], ensure_ascii=False, default=str)
        started, finished = finite(row.get("started")), finite(row.get("finished"))
        if started is not None and finished is not None:
            text["seconds"] = short(finished - started, 4)
        tokens = row.get("tokens")
        if isinstance(tokens, dict) and _is_whole(tokens):
            self._add_tokens(text, tokens)
        return text

    def _add_tokens(self, text: Row, tokens: Row) -> None:
        pieces = self._decode(tokens["ids"])
        if pieces is None:
            self.rollouts.num_undecoded += 1
            return
        shown = {"pieces": pieces, "logprobs": [short(value, 4) for value in tokens["logprobs"]]}
        if tokens.get("advantages"):
            shown["advantages"] = [short(value, 4) for value in tokens["advantages"]]
        text["tokens"] = shown


def collect(files: Sequence[Path], limit: int, decode: Decode, pack: Callable[[Any], str]) -> Rollouts:
    """At most `limit` rollouts, in whole groups and evenly over the steps; of a step its first groups.

    The first groups are the ones that a run writes with their tokens. Raises DataError for a file that is not readable.
    """
    sizes = [_num_lines(file) for file in files]
    collector = Collector(sum(sizes), decode, pack)
    for file, share in zip(files, shares(sizes, limit, _group_size(files)), strict=True):
        step = last_number(file)
        for group in _groups(file, share):
            for row in group:
                collector.add(step, row)
    collector.close()
    return collector.rollouts


def shares(sizes: Sequence[int], limit: int, group_size: int) -> list[int]:
    """How many rollouts of each step to take: all, or evenly many; of steps spread evenly where some get no group."""
    chosen = list(range(len(sizes)))
    most = max(limit // group_size, 1)
    if sum(sizes) > limit and len(chosen) > most:
        gap = (len(sizes) - 1) / max(most - 1, 1)
        chosen = sorted({len(sizes) - 1 - round(place * gap) for place in range(most)})
    taken, left = [0] * len(sizes), limit
    for rank, step in enumerate(sorted(chosen, key=sizes.__getitem__)):
        taken[step] = min(sizes[step], left // (len(chosen) - rank))
        left -= taken[step]
    return taken


def _groups(file: Path, share: int) -> Iterator[list[Row]]:
    """Whole groups from the start of a step's file while they fit into `share`; one at least, if any is asked for."""
    taken = 0
    group: list[Row] = []
    for _, row in json_rows(file) if share else ():
        if group and row.get("group_id") != group[0].get("group_id"):
            yield group
            taken, group = taken + len(group), []
        if taken and taken + len(group) >= share:
            return
        group.append(row)
    if group:
        yield group


def _group_size(files: Sequence[Path]) -> int:
    """Responses of the last step's first group."""
    return len(next(_groups(files[-1], 1), [])) or 1 if files else 1


def _num_lines(file: Path) -> int:
    with file.open("rb") as lines:
        return sum(1 for _ in lines)


def _is_whole(tokens: Row) -> bool:
    columns = [tokens.get("ids"), tokens.get("logprobs"), tokens.get("advantages") or tokens.get("ids")]
    lengths = {len(values) if isinstance(values, list) else None for values in columns}
    return len(lengths) == 1 and None not in lengths


def _prompt(prompt: Any) -> Any:
    """Text, or chat messages as `[role, text]`."""
    if isinstance(prompt, list) and all(isinstance(message, dict) for message in prompt):
        return [[_string(message.get("role")), _string(message.get("content"))] for message in prompt]
    return _string(prompt)


def _part(part: Any) -> tuple[float | None, str, str]:
    if not isinstance(part, dict):
        return short(part), "", ""
    return short(part.get("value")), _string(part.get("outcome")), _string(part.get("detail"))


def _whole(value: Any) -> int | None:
    number = finite(value)
    return None if number is None else int(number)


def _string(value: Any) -> str:
    if value is None:
        return ""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
