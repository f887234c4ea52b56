"""Named functions: registered inside rlsys by decorator, outside code by `module:attr` or `path.py:attr`."""

from __future__ import annotations

import functools
import hashlib
import importlib
import importlib.util
import inspect
import pkgutil
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Generic, Literal, TypeVar, cast, get_args, get_origin, get_type_hints

from rlsys.errors import ConfigError, nearest

F = TypeVar("F", bound=Callable[..., Any])


class Registry(Generic[F]):
    """Functions of one kind, found by name.

    Every module of `package` is imported at the first look-up, so that a new file in that folder is all a new entry
    takes. Names resolve in the process that uses them: a registration made only in the driver would be unknown in a
    worker.
    """

    def __init__(self, kind: str, package: str) -> None:
        self.kind = kind
        self._package = package
        self._functions: dict[str, F] = {}
        self._facts: dict[str, dict[str, Any]] = {}
        self._scanned = False

    def register(self, name: str, **facts: Any) -> Callable[[F], F]:
        """Decorator: make a function known under `name`. Raises ValueError when the name is taken.

        `facts` are what the rest of the system must know of it beforehand, such as `min_group_size=2`.
        """

        def add(function: F) -> F:
            if name in self._functions:
                raise ValueError(f"{self.kind} '{name}' is registered twice")
            self._functions[name] = function
            self._facts[name] = facts
            return function

        return add

    def fact(self, name: str, key: str, default: Any) -> Any:
        """What was stated at registration, or `default` (always for outside code)."""
        self._scan()
        return self._facts.get(name, {}).get(key, default)

    def names(self) -> list[str]:
        """All registered names, sorted."""
        self._scan()
        return sorted(self._functions)

    def get(self, name: str) -> F:
        """The function called `name`. Raises ConfigError with the nearest match when there is none."""
        if ":" in name:
            return cast(F, load_external(name, self.kind))
        self._scan()
        if name not in self._functions:
            hint = nearest(name, self._functions)
            raise ConfigError(f"unknown {self.kind} '{name}': {hint} (outside code is named 'module:function')")
        return self._functions[name]

    def bind(self, name: str, options: Mapping[str, Any]) -> F:
        """`get(name)` with its keyword-only `options` filled in.

        Raises ConfigError naming the accepted options when one is unknown, or of another type than its default.
        """
        function = self.get(name)
        accepted = set(option_names(function))
        for option in options:
            if option not in accepted:
                listing = ", ".join(sorted(accepted)) or "none"
                close = nearest(option, accepted) if accepted else ""
                raise ConfigError(
                    f"{self.kind} '{name}' has no option '{option}'; accepted options: {listing}. {close}".strip()
                )
            _check_type(f"{self.kind} '{name}'", option, options[option], function)
        if not options:
            return function
        return cast(F, functools.partial(function, **options))

    def component(self, config: Mapping[str, Any]) -> F:
        """The function that a config node `{name: ..., option: value ...}` describes."""
        if "name" not in config:
            raise ConfigError(f"a {self.kind} needs a name: {{name: one of {', '.join(self.names())}}}")
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


def absolute_name(name: str) -> str:
    """Of `path.py:attr` one that does not depend on a working directory; any other name as it is."""
    path, colon, attribute = name.rpartition(":")
    return f"{Path(path).expanduser().resolve()}{colon}{attribute}" if path.endswith(".py") else name


def option_names(function: Callable[..., Any]) -> list[str]:
    """Names of a function's keyword-only parameters: its options."""
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY]


def free_parameters(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    options = getattr(function, "keywords", {})
    parameters = inspect.signature(function).parameters
    return {name: p for name, p in parameters.items() if p.kind in named and name not in options}


def _check_type(owner: str, option: str, value: Any, function: Callable[..., Any]) -> None:
    """A `Literal` names the values; else the default tells the type: a number, a truth value or text. Any other
    default accepts anything."""
    choices = _named_values(function, option)
    if choices and value not in choices:
        listing = ", ".join(map(str, choices))
        raise ConfigError(f"{owner}: option '{option}' is {value!r}, known: {listing}. {nearest(str(value), choices)}")
    default = inspect.signature(function).parameters[option].default
    for kind, wanted in ((bool, "true or false"), (int | float, "a number"), (str, "text")):
        if isinstance(default, kind):  # bool first: it is an int too
            fits = isinstance(value, kind) and (kind is bool or not isinstance(value, bool))
            if not fits:
                raise ConfigError(f"{owner}: option '{option}' is {value!r}, it must be {wanted} (default {default!r})")
            return


def _named_values(function: Callable[..., Any], option: str) -> tuple[Any, ...]:
    """What a `Literal` annotation allows; nothing for any other."""
    try:
        target = cast(Any, function).__init__ if isinstance(function, type) else function
        hint = get_type_hints(target).get(option)
    except (NameError, AttributeError, TypeError):  # a callable without annotations, or with some only a checker reads
        return ()
    return get_args(hint) if get_origin(hint) is Literal else ()


def load_external(name: str, kind: str = "function") -> Callable[..., Any]:
    """Import `module:attr` or `path/to/file.py:attr`. Raises ConfigError saying which half is wrong."""
    module_name, _, attribute = name.rpartition(":")
    try:
        module = _load_file(Path(module_name)) if module_name.endswith(".py") else importlib.import_module(module_name)
    except Exception as error:  # whatever a file of the user's raises while it is imported
        reason = f"{type(error).__name__}: {error}"
        raise ConfigError(f"{kind} '{name}': cannot import '{module_name}': {reason}") from error
    target = getattr(module, attribute, None)
    if not callable(target):
        public = [n for n, v in vars(module).items() if callable(v) and not n.startswith("_")]
        raise ConfigError(
            f"{kind} '{name}': '{module_name}' has no function '{attribute}'; {nearest(attribute, public)}"
        )
    return cast(Callable[..., Any], target)


def _load_file(path: Path) -> Any:
    if not path.is_file():
        raise ImportError(f"no such file: {path.resolve()}")
    digest = hashlib.sha256(str(path.resolve()).encode()).hexdigest()[:12]
    module_name = f"rlsys_external_{path.stem}_{digest}"
    if module_name in sys.modules:
        return sys.modules[module_name]
    spec = importlib.util.spec_from_file_location(module_name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[module_name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[module_name]  # half a module must not answer the next import
        raise
    return module
