"""Registries of named functions: inside rlsys by decorator, outside code as `module:function` or `path.py:function`."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib
import importlib.util
import inspect
import os
import pkgutil
import re
import sys
from collections import abc
from collections.abc import Callable, Iterator, Mapping, Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import NoneType, SimpleNamespace, UnionType
from typing import Any, Generic, Literal, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from rlsys.errors import ConfigError, closest, nearest

FILE_MODULE = "rlsys_external_"  # how names of modules begin that were imported from a file
# Types of options that are checked, besides `Literal` and unions, as messages name them.
WORDS = {
    bool: "true or false",
    int: "a whole number",
    float: "a number",
    str: "text",
    NoneType: "null",
    list: "a list",
    tuple: "a list",
    abc.Sequence: "a list",
    dict: "a mapping",
    abc.Mapping: "a mapping",
}
_user_folders: set[str] = set()  # what is installed comes before the modules there, wherever it stands
F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[F]):
    """The functions of one kind, found by name.

    Every module of `package` is imported at the first look-up, so a new file in that folder is all that a new entry
    needs. Names are looked up in the process that uses them: a registration made only in the driver would be unknown in
    a worker.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._functions: dict[str, F] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._scanned = False

    def register(self, name: str, **facts: Any) -> Callable[[F], F]:
        """Return a decorator that registers a function under `name`. It raises ValueError when the name is taken.

        `facts` are what the rest of the system must know of the function beforehand, such as `min_group_size=2`.
        """

        def add(function: F) -> F:
            if name in self._functions:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._functions[name] = function
            self._facts[name] = facts
            return function

        return add

    def fact(self, name: str, key: str, default: Any) -> Any:
        """Return a fact stated at registration, or `default`; outside code states none."""
        self._scan()
        return self._facts.get(name, {}).get(key, default)

    def names(self) -> list[str]:
        """Return all registered names, sorted."""
        self._scan()
        return sorted(self._functions)

    def get(self, name: str) -> F:
        """Return the function called `name`. Raise ConfigError with the nearest match when there is none."""
        if ":" in name:
            return cast(F, load_external(name, self.kind))
        self._scan()
        if name not in self._functions:
            hint = nearest(name, self._functions)
            raise ConfigError(f"unknown {self.kind} '{name}': {hint} (outside code is named 'module:function')")
        return self._functions[name]

    def bind(self, name: str, options: Mapping[str, Any], *, other_keys: Sequence[str] = ("name",)) -> F:
        """Return the function called `name` with its keyword-only `options` filled in.

        Raises ConfigError for an unknown option, with the accepted ones and the nearest match, and for an option of
        another type than its annotation, or its default, says. `other_keys` are keys that stand beside the options in
        the configuration; they take part in the nearest match, so that `nam` is answered with `name`.
        """
        function = self.get(name)
        accepted = option_names(function)
        for option in options:
            if option not in accepted:
                near = closest(option, [*accepted, *other_keys])
                raise ConfigError(
                    f"{self.kind} '{name}' has no option '{option}'; accepted options: "
                    f"{', '.join(sorted(accepted)) or 'none'}" + (f"; did you mean '{near}'?" if near else "")
                )
            _check_type(f"{self.kind} '{name}'", option, options[option], function)
        return cast(F, functools.partial(function, **options)) if options else function

    def component(self, config: Mapping[str, Any]) -> F:
        """Return the function that `{name: ..., option: value ...}` describes, with its options filled in."""
        if "name" not in config:
            raise ConfigError(f"a {self.kind} needs a name: {{name: ...}}, one of {', '.join(self.names())}")
        options = {key: value for key, value in config.items() if key != "name"}
        function = self.bind(str(config["name"]), options)
        for option in option_names(function):
            if inspect.signature(function).parameters[option].default is inspect.Parameter.empty:
                raise ConfigError(f"{self.kind} '{config['name']}' needs the option '{option}'")
        return function

    def _scan(self) -> None:
        if self._scanned:
            return
        self._scanned = True
        package = importlib.import_module(self._package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self._package}.{module.name}")


def option_names(function: Callable[..., Any]) -> list[str]:
    """Return the names of a function's keyword-only parameters, which are its options."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def free_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the parameters that a caller may name and that no `functools.partial` has filled in."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    options = getattr(function, "keywords", {})
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind in named and name not in options}


def load_external(name: str, kind: str = "function") -> Callable[..., Any]:
    """Import `module:function` or `path/to/file.py:function`. Raise ConfigError saying which half is wrong.

    A module is what is installed under this name, else what the working directory holds.
    """
    module_name, _, attribute = name.rpartition(":")
    is_file = module_name.endswith(".py")
    try:
        module = _load_file(Path(module_name).expanduser()) if is_file else _load_module(module_name)
    except Exception as error:  # importing a user's file may raise anything
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{kind} '{name}': cannot import '{module_name}': {reason}") from error
    target = getattr(module, attribute, None)
    if not callable(target):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(
            f"{kind} '{name}': '{module_name}' has no function '{attribute}'; {nearest(attribute, public)}"
        )
    return cast(Callable[..., Any], target)


def _check_type(owner: str, option: str, value: Any, function: Callable[..., Any]) -> None:
    """Raise ConfigError when the value does not fit the option's annotation, or its default where it has none."""
    hint, default = option_type(owner, option, function), inspect.signature(function).parameters[option].default
    if fits(value, hint):
        return
    choices = get_args(hint) if get_origin(hint) is Literal else ()
    if choices:
        listing = ", ".join(map(str, choices))
        raise ConfigError(f"{owner}: option '{option}' is {value!r}, known: {listing}. {nearest(str(value), choices)}")
    usual = "" if default is inspect.Parameter.empty else f" (default {default!r})"
    raise ConfigError(f"{owner}: option '{option}' is {value!r}, it must be {_words(hint)}{usual}")


def option_type(owner: str, option: str, function: Callable[..., Any]) -> Any:
    """Return the type that an option of a function takes: its annotation, else that of its default, else Any.

    Raises ConfigError for an annotation that only a type checker can resolve: the value could not be checked.
    """
    parameter = inspect.signature(function).parameters[option]
    if parameter.annotation is inspect.Parameter.empty:
        kinds = {bool: bool, int: float, float: float, str: str}  # 1 as a default says nothing of 1.5
        return kinds.get(type(parameter.default), Any)
    target: Any = inspect.unwrap(function)
    if not inspect.isroutine(target):  # a class, or an object that can be called
        target = cast(Any, target).__init__ if isinstance(target, type) else type(target).__call__
    # This option alone: the other parameters may have types that are imported for a type checker.
    holder = SimpleNamespace(__annotations__={option: parameter.annotation})
    try:
        return get_type_hints(holder, globalns=getattr(target, "__globals__", {}))[option]
    except (NameError, AttributeError, TypeError, SyntaxError) as error:
        raise ConfigError(
            f"{owner}: the annotation of option '{option}', {parameter.annotation!r}, cannot be resolved ({error}), so "
            "no value can be checked: import its names where the function is defined, or leave it out"
        ) from error


def fits(value: Any, hint: Any) -> bool:
    """Return whether a value from a configuration is of a type; of types outside `WORDS` every value is."""
    origin, args = get_origin(hint), get_args(hint)
    if origin is Literal:
        return value in args
    if origin in (Union, UnionType):
        return any(fits(value, part) for part in args)
    if (origin or hint) in (list, tuple, abc.Sequence):
        parts = {part for part in args if part is not Ellipsis}
        is_list = isinstance(value, list | tuple)
        return is_list and (len(parts) != 1 or all(fits(item, part) for item in value for part in parts))
    if (origin or hint) in (dict, abc.Mapping):
        return isinstance(value, abc.Mapping)
    if hint in (int, float):  # True is an int to Python, and NaN no value of anything
        number = int if hint is int else int | float
        return isinstance(value, number) and not isinstance(value, bool) and value == value
    return isinstance(value, hint) if hint in (bool, str, NoneType) else True


def _words(hint: Any) -> str:
    """Return a type as messages name it."""
    if get_origin(hint) in (Union, UnionType):
        return " or ".join(map(_words, get_args(hint)))
    if get_origin(hint) is Literal:
        return f"one of {', '.join(map(str, get_args(hint)))}"
    return WORDS.get(get_origin(hint) or hint, str(hint))


def _load_module(name: str) -> Any:
    """Import a module; from here on the working directory is searched too, last: nothing there replaces a library."""
    if os.getcwd() not in sys.path:
        search_last(os.getcwd())
    return importlib.import_module(name)


def _load_file(path: Path) -> Any:
    """Import a file once per process, under a name made from its path."""
    path = path.resolve()
    if not path.is_file():
        raise ImportError(f"no such file: {path}")
    name, folder = _module_name(path), str(path.parent)
    if name in sys.modules:
        return sys.modules[name]
    # While the file is imported its neighbours come first, as if it were run. Later they come last: a neighbour called
    # `types.py` must not be what a library means.
    with searched_first(folder):
        return importlib.import_module(name)


def search_last(folder: str) -> None:
    """Have a folder searched for modules when nothing that is installed has the name."""
    _user_folders.add(folder)
    sys.path[:] = [*(path for path in sys.path if path != folder), folder]


@contextlib.contextmanager
def searched_first(folder: str) -> Iterator[None]:
    """Have a folder searched before everything that is installed, then last; one of PYTHONPATH stays there."""
    theirs = folder in sys.path and folder not in _user_folders
    _user_folders.discard(folder)
    sys.path.insert(0, folder)
    try:
        yield
    finally:
        with contextlib.suppress(ValueError):  # what was imported may have changed the path itself
            sys.path.remove(folder)
        if not theirs:
            search_last(folder)


def _module_name(path: Path) -> str:
    stem = re.sub(r"\W", "_", path.stem)  # a dot would name a package
    return f"{FILE_MODULE}{stem}_{hashlib.sha256(str(path).encode()).hexdigest()[:12]}"


class _FileFinder(MetaPathFinder):
    """Finder of the modules that `_load_file` names: also in processes that a function starts by `spawn`.

    Those get `sys.path` from their parent, and the name of a module in what they unpickle.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> Any:
        """Return the spec of a file in a folder of `sys.path`; None for the names of other modules."""
        if not fullname.startswith(FILE_MODULE):
            return None
        files = (file for folder in sys.path for file in Path(folder).resolve().glob("*.py"))
        found = next((file for file in files if _module_name(file) == fullname), None)
        return found and importlib.util.spec_from_file_location(fullname, found)


class _InstalledFirst(MetaPathFinder):
    """Finder that asks all of `sys.path` but the user's folders, before Python asks the whole path.

    The end of the path is not enough: setuptools appends a folder of its own when it is imported, and Python takes any
    file on the path before a package without one, as `opentelemetry`.
    """

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        """Return the spec of an installed module; None for one of the user's, and for a package's parts."""
        if path is not None or not _user_folders:
            return None
        return PathFinder.find_spec(fullname, [folder for folder in sys.path if folder not in _user_folders], target)


sys.meta_path.append(_FileFinder())
sys.meta_path.insert(sys.meta_path.index(PathFinder), _InstalledFirst())
