"""The check itself: what it finds in a package that has changed."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contracts.check import faults, texts
from tests.contracts.source import Package
from tests.contracts.vllm_uses import Use

FILES = {
    "__init__.py": "if TYPE_CHECKING:\n    from pack.inner.engine import Engine\n",
    "inner/__init__.py": "from .engine import Engine as Renamed\n",
    "inner/engine.py": """
from typing import Literal
from .base import Base, helper

Mode = Literal["keep", "drop"]

class Engine(Base[int]):
    name: str
    size: int = 3
    def generate(self, prompt, params, *, salt=None): return helper(prompt)
""",
    "inner/base.py": """
class Base(Generic[T]):
    kind: str = "base"
    def begin(self, *args):
        self.first, self.second = args
    async def stop(self): pass

def helper(value): return value
""",
}
ENGINE = Use(
    "pack",
    "Engine",
    calls=("Engine(name=_, size=_, kind=_)", "generate(prompt, params, salt=_)", "stop()"),
    reads=("first", "second", "size"),
)


def package(folder: Path, **replaced: tuple[str, str]) -> Package:
    """The package above, with texts of its files replaced; `inner_engine` stands for `inner/engine.py`."""
    for name, text in FILES.items():
        file = folder / "pack" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text.replace(*replaced.get(name.removesuffix(".py").replace("/", "_"), ("", ""))))
    return Package(folder)


def test_a_package_that_has_all_of_it(tmp_path: Path) -> None:
    whole = package(tmp_path)
    assert faults(whole, ENGINE) == []
    assert faults(whole, Use("pack.inner", "Renamed", reads=("second",))) == []
    assert faults(whole, Use("pack.inner.engine", "Mode", values=("keep",))) == []
    assert faults(whole, Use("pack.inner", "engine", calls=("helper(value)",), replaces=("helper",))) == []


@pytest.mark.parametrize(
    ("changed", "fault"),
    [
        (("class Engine", "class Motor"), "pack.Engine does not exist"),
        (("salt=", "pepper="), "there is no parameter salt"),
        (("prompt, params,", "params, prompt,"), "the first parameters are params, prompt"),
        (("salt=None", "salt=None, width"), "width is required"),
        (("size: int = 3", "count: int = 3"), "there is no parameter size"),
        (("size: int = 3", "size: int = 3\n    count: int"), "count is required"),
        (("Base[int]", ""), "has no member stop"),
    ],
)
def test_what_is_gone_is_found(tmp_path: Path, changed: tuple[str, str], fault: str) -> None:
    assert fault in "; ".join(faults(package(tmp_path, inner_engine=changed), ENGINE))


def test_a_replaced_function_must_be_called_where_it_is_replaced(tmp_path: Path) -> None:
    elsewhere = package(tmp_path, inner_engine=("return helper(prompt)", "return prompt"))
    found = faults(elsewhere, Use("pack.inner", "engine", replaces=("helper",)))
    assert found == ["pack.inner.engine does not call helper, which rlsys replaces"]


def test_a_literal_that_is_no_longer_allowed_is_found(tmp_path: Path) -> None:
    found = faults(package(tmp_path, inner_engine=('"keep", ', "")), Use("pack.inner.engine", "Mode", values=("keep",)))
    assert found == ["pack.inner.engine.Mode does not allow 'keep'"]


@pytest.mark.parametrize(
    ("file", "changed", "name"),
    [
        ("inner_engine", ("size: int = 3", "size: int = 4"), "pack.Engine(size)"),
        ("inner_engine", ("salt=None", "salt=1"), "pack.generate"),
        ("inner_engine", ("(Base[int])", "(Base[str])"), "pack.Engine: bases"),
        ("inner_base", ("stop(self): pass", "stop(self): return 1"), "pack.stop"),
    ],
    ids=["a field's default", "a parameter's default", "a base", "a body"],
)
def test_texts_differ_where_a_definition_does(tmp_path: Path, file: str, changed: tuple[str, str], name: str) -> None:
    before = texts(package(tmp_path / "before"), ENGINE)
    after = texts(package(tmp_path / "after", **{file: changed}), ENGINE)
    assert {each for each, text in after.items() if before.get(each) != text} >= {name}
