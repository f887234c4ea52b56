"""Functions found by name."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from types import UnionType
from typing import TYPE_CHECKING, Any, Literal, Union, get_args, get_origin

import pytest

from rlsys import data, rewards
from rlsys.algorithms import advantages, aggregation, corrections, kl, policy_losses
from rlsys.errors import ConfigError
from rlsys.metrics import trackers
from rlsys.registry import WORDS, Registry, fits, load_external, option_names, option_type

if TYPE_CHECKING:
    from decimal import Decimal as Unknown

PACKAGE = "from rlsys.registry import Registry\nregistry = Registry('shape', __name__)\nregister = registry.register\n"
SQUARE = """
from {package} import register

@register("square", corners=4)
def square(x, *, size=1, unit="cm"):
    return x * size, unit

@register("line")
def line(x):
    return x
"""


@pytest.fixture
def shapes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Registry[Any]:
    """A registry of a package made on the spot, with `square` and `line` in one of its modules."""
    name = f"shapes_of_{request.node.name.partition('[')[0]}"
    folder = tmp_path / name
    folder.mkdir()
    (folder / "__init__.py").write_text(PACKAGE)
    (folder / "square.py").write_text(SQUARE.format(package=name))
    monkeypatch.syspath_prepend(tmp_path)
    return __import__(name).registry


def test_a_file_in_the_folder_is_all_it_takes(shapes: Registry[Any]) -> None:
    assert shapes.names() == ["line", "square"]
    assert shapes.get("square")(3, size=2) == (6, "cm")


def test_an_unknown_name_gets_the_nearest_match(shapes: Registry[Any]) -> None:
    with pytest.raises(ConfigError, match=r"unknown shape 'sqare': did you mean 'square'\?.*'module:function'"):
        shapes.get("sqare")


def test_a_name_near_nothing_gets_the_whole_list(shapes: Registry[Any]) -> None:
    with pytest.raises(ConfigError, match="known: line, square"):
        shapes.get("circle-of-fire")


def test_options_are_filled_in(shapes: Registry[Any]) -> None:
    assert shapes.component({"name": "square", "size": 5})(2) == (10, "cm")


def test_an_unknown_option_lists_the_accepted_ones(shapes: Registry[Any]) -> None:
    with pytest.raises(ConfigError, match=r"shape 'square' has no option 'sise'; accepted options: size, unit"):
        shapes.component({"name": "square", "sise": 5})


def test_the_hint_for_an_unknown_option_knows_the_keys_beside_the_options(shapes: Registry[Any]) -> None:
    with pytest.raises(ConfigError, match=r"no option 'nam'; accepted options: size, unit; did you mean 'name'\?"):
        shapes.component({"name": "square", "nam": "line"})
    with pytest.raises(ConfigError, match=r"did you mean 'weight'\?"):
        shapes.bind("square", {"wieght": 2}, other_keys=("name", "weight"))


def test_a_function_without_options_says_so(shapes: Registry[Any]) -> None:
    with pytest.raises(ConfigError, match="accepted options: none"):
        shapes.component({"name": "line", "x": 1})  # positional: not an option


@pytest.mark.parametrize("value", ["2", True, None, [2], float("nan")])
def test_an_option_of_another_type_than_its_default(shapes: Registry[Any], value: Any) -> None:
    with pytest.raises(ConfigError, match=r"shape 'square': option 'size' is .*, it must be a number"):
        shapes.bind("square", {"size": value})


def test_a_component_needs_a_name(shapes: Registry[Any]) -> None:
    with pytest.raises(ConfigError, match=r"a shape needs a name.*line, square"):
        shapes.component({"size": 1})


def test_a_name_is_registered_once(shapes: Registry[Any]) -> None:
    shapes.names()
    with pytest.raises(ValueError, match="shape 'square' is registered twice"):
        shapes.register("square")(len)


def test_facts(shapes: Registry[Any]) -> None:
    assert shapes.fact("square", "corners", 0) == 4
    assert shapes.fact("line", "corners", 0) == 0
    assert shapes.fact("math:sqrt", "corners", 0) == 0


def test_rlsys_own_components() -> None:
    assert "grpo" in advantages.registry.names()
    assert advantages.registry.fact("grpo", "min_group_size", 1) == 2
    assert {"ppo_clip", "gspo", "cispo"} <= set(policy_losses.registry.names())
    assert {"sequence_mean", "token_mean", "constant_length"} <= set(aggregation.registry.names())
    assert kl.registry.names() == ["abs", "k1", "k2", "k3"]


def test_outside_code_from_a_module(shapes: Registry[Any]) -> None:
    import math

    assert shapes.get("math:sqrt") is math.sqrt


def test_outside_code_from_a_file(tmp_path: Path, shapes: Registry[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "mine.py").write_text("def triangle(x, *, size=1):\n    return x * size / 2\n")
    name = f"{tmp_path}/mine.py:triangle"
    assert shapes.component({"name": name, "size": 3})(4) == 6
    assert shapes.get(name) is shapes.get(name)  # loaded once
    monkeypatch.setenv("HOME", str(tmp_path))
    assert shapes.get("~/mine.py:triangle") is shapes.get(name)
    with pytest.raises(ConfigError, match="accepted options: size"):
        shapes.component({"name": name, "width": 3})


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("no_such_module_here:f", "cannot import 'no_such_module_here'"),
        ("nowhere/mine.py:f", "no such file"),
        ("math:sqr", "'math' has no function 'sqr'; did you mean 'sqrt'?"),
        ("math:pi", "'math' has no function 'pi'"),  # a number cannot be called
    ],
)
def test_outside_code_that_is_not_there(name: str, said: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_external(name, "reward")
    assert f"reward '{name}'" in str(caught.value)
    assert said in str(caught.value)


@pytest.mark.parametrize("source", ["def f(:\n", "def f():\n    pass\nraise ValueError('at import')\n"])
def test_a_broken_file_is_refused_every_time(tmp_path: Path, source: str) -> None:
    (tmp_path / "broken.py").write_text(source)
    for _ in range(2):  # a half-run module must not be taken for the whole one the second time
        with pytest.raises(ConfigError, match=r"broken\.py"):
            load_external(f"{tmp_path}/broken.py:f")


def test_a_module_of_the_working_directory_is_found_and_replaces_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    (tmp_path / "rewards_beside_me.py").write_text("def f():\n    return 'mine'\n")
    (tmp_path / "colorsys.py").write_text("def rgb_to_hsv():\n    return 'mine'\n")
    assert load_external("rewards_beside_me:f", "reward")() == "mine"
    assert load_external("colorsys:rgb_to_hsv", "reward")(0, 0, 0) == (0.0, 0.0, 0)


def test_files_of_like_names_are_kept_apart(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "b.py").write_text("def f():\n    return 'a/b'\n")
    (tmp_path / "a_b.py").write_text("def f():\n    return 'a_b'\n")
    assert load_external(f"{tmp_path}/a/b.py:f")() == "a/b"
    assert load_external(f"{tmp_path}/a_b.py:f")() == "a_b"
    (tmp_path / "a.b-c.py").write_text("def f():\n    return 'a.b-c'\n")
    assert load_external(f"{tmp_path}/a.b-c.py:f")() == "a.b-c"


def test_an_option_with_named_values_takes_only_those(shapes: Registry[Any]) -> None:
    def drawn(*, line: Literal["solid", "dashed"] = "solid") -> str:
        return line

    shapes.register("drawn")(drawn)
    assert shapes.bind("drawn", {"line": "dashed"})() == "dashed"
    with pytest.raises(ConfigError, match=r"shape 'drawn': option 'line' is 'dotted', known: solid, dashed"):
        shapes.bind("drawn", {"line": "dotted"})


def test_a_callable_object_takes_options_too(shapes: Registry[Any]) -> None:
    class Scaled:
        def __call__(self, *, size: float = 1.0) -> float:
            return size

    shapes.register("scaled")(Scaled())
    assert shapes.bind("scaled", {"size": 3})() == 3


def test_a_component_needs_the_options_without_a_default(shapes: Registry[Any]) -> None:
    def needy(*, size: int) -> int:
        return size

    shapes.register("needy")(needy)
    with pytest.raises(ConfigError, match=r"shape 'needy' needs the option 'size'"):
        shapes.component({"name": "needy"})


REGISTRIES = [m.registry for m in (advantages, aggregation, corrections, kl, policy_losses, rewards, data, trackers)]
# Options whose values their functions check themselves, because they may be of any kind.
ANY_KIND = {("json_schema", "schema")}


def is_checked(hint: Any) -> bool:
    """Return whether `fits` refuses some values of a type."""
    if get_origin(hint) in (Union, UnionType):
        return all(map(is_checked, get_args(hint)))
    return get_origin(hint) is Literal or (get_origin(hint) or hint) in WORDS


@pytest.mark.parametrize(
    ("registry", "name"),
    [(registry, name) for registry in REGISTRIES for name in registry.names()],
    ids=lambda each: each if isinstance(each, str) else each.kind,
)
def test_every_option_of_ours_is_of_a_type_that_is_checked_and_so_is_its_default(
    registry: Registry[Any], name: str
) -> None:
    function = registry.get(name)
    unchecked = set()
    for option in option_names(function):
        hint = option_type(name, option, function)
        if not is_checked(hint):
            unchecked.add((name, option))
        default = inspect.signature(function).parameters[option].default
        assert default is inspect.Parameter.empty or fits(default, hint), (option, default, hint)
    assert unchecked == {pair for pair in ANY_KIND if pair[0] == name}


@pytest.mark.parametrize(
    ("hint", "good", "bad"),
    [
        (bool, [True], [1, "true", None]),
        (int, [3, -1], [2.5, True, "3", None, float("nan")]),
        (float, [3, 2.5], [float("nan"), "3", False, None]),
        (str, ["", "x"], [1, None, ["x"]]),
        (float | None, [None, 0.5, 1], ["0.5", True]),
        (Literal["a", "b"] | None, ["a", None], ["c", 1]),
        (list[int], [[], [1, 2], (3,)], [[1, "2"], "12", 1, None]),
        (list[str] | str, ["x", ["x"]], [[1], 1]),
        (tuple[float, ...], [(1, 2.5), [0.5]], [["x"], 0.5]),
        (dict[str, Any], [{}, {"a": 1}], [[], "a"]),
        (Any, [1, "x", None], []),
    ],
)
def test_the_values_of_a_type(hint: Any, good: list[Any], bad: list[Any]) -> None:
    assert [value for value in good if not fits(value, hint)] == []
    assert [value for value in bad if fits(value, hint)] == []


def test_an_option_without_a_default_of_its_kind_is_checked_by_its_annotation(shapes: Registry[Any]) -> None:
    def cut(x: Unknown, *, at: float | None = None, times: int, names: list[str] | None = None) -> None: ...

    shapes.register("cut")(cut)
    bind = shapes.bind
    bind("cut", {"at": 1, "times": 2, "names": ["a"]})  # the type of `x` matters to nobody
    with pytest.raises(ConfigError, match=r"shape 'cut': option 'at' is 'x', it must be a number or null \("):
        bind("cut", {"at": "x"})
    with pytest.raises(ConfigError, match=r"option 'times' is 2\.5, it must be a whole number$"):
        bind("cut", {"times": 2.5})
    with pytest.raises(ConfigError, match=r"option 'names' is \[1\], it must be a list or null"):
        bind("cut", {"names": [1]})


def test_an_annotation_that_cannot_be_resolved_is_refused_by_name(shapes: Registry[Any]) -> None:
    def drawn(*, line: Unknown | None = None) -> None: ...

    shapes.register("drawn")(drawn)
    shapes.bind("drawn", {})
    with pytest.raises(
        ConfigError, match=r"shape 'drawn': the annotation of option 'line', 'Unknown | None', cannot be"
    ):
        shapes.bind("drawn", {"line": 1})
