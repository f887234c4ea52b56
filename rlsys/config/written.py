"""The form of a configuration that may be written to disk, to a tracker or to a model card.

Text that came from the environment (`${oc.env:PW}`) is written as it was asked for, not as its value, which may be a
password. `FromEnvironment` carries the request along with the value, from composing to writing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from omegaconf.resolvers import oc

# A `${` that OmegaConf would read as the start of an interpolation, with the backslashes before it.
INTERPOLATION = re.compile(r"(\\*)\$\{")
MARK = re.compile("\0(\\d+)\0")  # stands for a request of the environment; no text of a configuration has a zero byte
SHORTEST = 4  # characters of a value of the environment that is looked for in other texts
# An absolute name of files or a folder, perhaps with the `:function` of a `path.py:function`.
ABSOLUTE = re.compile(r"(?:file://)?~?/(?:[\w.@+=, *?\[\]{}-]+/)*(?P<name>[\w.@+=, *?\[\]{}-]+(?:\.py:\w+)?)/?")


class FromEnvironment(str):
    """Text that was made from environment variables; `source` is the text before, as `${oc.env:PW}`."""

    source: str

    def __repr__(self) -> str:
        """Show what was asked for: messages and logs hold it."""
        return repr(self.source)


def remember_environment(config: Any, unresolved: Any) -> Any:
    """Return a configuration in which every text that was made from the environment is a `FromEnvironment`.

    Args:
        config: the resolved configuration: dataclasses, mappings, lists and values.
        unresolved: the same as plain containers, with interpolations as they were written.
    """
    requests = _Requests()
    with _environment_as(requests.ask):
        asked = requests.resolved(OmegaConf.create(unresolved))

    def mark(text: str, request: Any) -> str:
        return _marked(text, requests.source(request)) if isinstance(request, str) and MARK.search(request) else text

    return _map_texts(config, asked, mark) if requests else config


class _Requests(list[str]):
    """Requests of the environment, by number: resolving an interpolation gives the number's mark instead of a value."""

    def ask(self, variable: str, *default: Any) -> str:
        """Stand in for the resolver `oc.env`."""
        return self._mark(f"${{oc.env:{','.join([variable, *map(_quoted, default)])}}}")

    def resolved(self, node: Any) -> Any:
        """Return a container, or a value, with everything but the environment resolved."""
        if isinstance(node, DictConfig):
            return {key: self._at(node, key) for key in node}
        return [self._at(node, index) for index in range(len(node))] if isinstance(node, ListConfig) else node

    def source(self, asked: str) -> str:
        """Return a text with marks as OmegaConf is to read it."""
        text = _escaped(asked)
        while MARK.search(text):  # a request's default may be one, too
            text = MARK.sub(lambda found: self[int(found[1])], text)
        return text

    def _at(self, node: Any, key: Any) -> Any:
        try:
            return self.resolved(node[key])
        except OmegaConfBaseException:  # a resolver that refuses a mark
            return self._mark(OmegaConf.to_container(node, resolve=False)[key])  # type: ignore[index]

    def _mark(self, request: str) -> str:
        self.append(request)
        return f"\0{len(self) - 1}\0"


@contextlib.contextmanager
def _environment_as(resolver: Callable[..., str]) -> Iterator[None]:
    """Let OmegaConf ask another function for variables."""
    OmegaConf.register_new_resolver("oc.env", resolver, replace=True)
    try:
        yield
    finally:
        OmegaConf.register_new_resolver("oc.env", oc.env, replace=True)


def _quoted(value: Any) -> str:
    """Return a resolver's argument as OmegaConf reads it."""
    if not isinstance(value, str):
        return "null" if value is None else str(value)
    text = re.sub(r"(\\*)('|$)", lambda found: found[1] * 2 + ("\\'" if found[2] else ""), value)
    return f"'{text}'"


def _marked(text: str, source: str) -> FromEnvironment:
    marked = FromEnvironment(text)
    marked.source = source
    return marked


def with_requests(node: Any, given: Any) -> Any:
    """Return a tree in which texts that hold a `FromEnvironment` of another tree, its source, are such texts too."""
    known: list[FromEnvironment] = []

    def collect(text: str, _: Any) -> str:
        if isinstance(text, FromEnvironment) and len(text) >= SHORTEST:
            known.append(text)
        return text

    _map_texts(given, None, collect)
    return _map_texts(node, None, lambda text, _: _holding(text, known))


def _holding(text: str, known: Sequence[FromEnvironment]) -> str:
    if isinstance(text, FromEnvironment) or not any(value in text for value in known):
        return text
    source = _escaped(text)
    for value in sorted(known, key=len, reverse=True):
        source = source.replace(_escaped(value), value.source)
    return _marked(text, source)


def shown(text: str) -> str:
    """Return a text for a message: what came from the environment as it was asked for."""
    return text.source if isinstance(text, FromEnvironment) else text


def as_written(node: Any) -> Any:
    """Return a configuration, or a part of it, with every text as OmegaConf reads it back to the same value."""
    return _map_texts(node, None, _written)


def publishable(node: Any) -> Any:
    """Return `as_written` without folders of this machine: absolute names cut to their last part, no home folder."""
    home = str(Path.home())

    def cut(text: str, _: Any) -> str:
        found = ABSOLUTE.fullmatch(text)
        return found["name"] if found else re.sub(rf"{re.escape(home)}(?![\w.-])", "~", text) if home != "/" else text

    return _map_texts(as_written(node), None, cut)


def _written(text: str, _: Any) -> str:
    return text.source if isinstance(text, FromEnvironment) else _escaped(text)


def _escaped(text: str) -> str:
    return INTERPOLATION.sub(lambda found: f"{found[1] * 2}\\${{", text)


def _map_texts(node: Any, beside: Any, change: Callable[[str, Any], str]) -> Any:
    """Return a copy of a tree with every text in it changed; `change` also gets what stands there in `beside`."""
    if isinstance(node, str):
        return change(node, beside)
    if isinstance(node, list | tuple):
        return type(node)(_map_texts(value, _at(beside, index), change) for index, value in enumerate(node))
    if isinstance(node, Mapping):
        return {key: _map_texts(value, _at(beside, key), change) for key, value in node.items()}
    if dataclasses.is_dataclass(node) and not isinstance(node, type):
        names = [field.name for field in dataclasses.fields(node)]
        changed = {name: _map_texts(getattr(node, name), _at(beside, name), change) for name in names}
        return dataclasses.replace(node, **changed)
    return node


def _at(tree: Any, key: Any) -> Any:
    if isinstance(tree, Mapping):
        return tree.get(key)
    return tree[key] if isinstance(tree, list) and key < len(tree) else None
