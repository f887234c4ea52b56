"""Templates: an option holds the text, or the name of a file with it, and the text must use what it is given."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING

from rlsys.config.paths import absolute, expand, is_file, read_text
from rlsys.errors import ConfigError

if TYPE_CHECKING:
    from jinja2 import Template


def text_or_file(value: str, key: str, *, variable: str) -> str:
    """Return `value`, or the content of the file that it names, whatever its suffix.

    Args:
        value: a jinja template, or the name of a file.
        key: the option that holds it, for messages.
        variable: the variable that a template of this option uses, for messages.

    Raises:
        ConfigError: `value` is neither an existing file nor a template, or the file cannot be read.
    """
    if is_file(value):
        return read_text(value, key)
    if "{" in value or "\n" in value:
        return value
    raise ConfigError(
        f"{key}: no such file: {expand(value).resolve()}; nor is '{value}' a template, which would hold "
        f"{{{{ {variable} }}}}. Names of other libraries' templates are not known here: give a file, or the template"
    )


def absolute_template(value: str) -> str:
    """Return `value`; when it names an existing file, return the file's absolute name."""
    return absolute(value) if is_file(value) else value


def jinja_template(text: str, key: str, *, variable: str) -> Template:
    """Return the template that a text holds; a variable that it lacks when it is filled in is an error.

    Args:
        text: jinja.
        key: the option that holds it, for messages.
        variable: the variable that the template must use, if only in a condition.

    Raises:
        ConfigError: the text is not jinja, or does not use the variable.
    """
    from jinja2 import Environment, StrictUndefined, TemplateSyntaxError, meta

    environment = Environment(undefined=StrictUndefined)
    try:
        template, used = environment.from_string(text), meta.find_undeclared_variables(environment.parse(text))
    except TemplateSyntaxError as error:
        raise ConfigError(f"{key}, line {error.lineno}: not a jinja template: {error.message}") from error
    if variable not in used:
        raise unused(variable, text, key, used=sorted(used))
    return template


def unused(variable: str, text: str, key: str, *, used: Sequence[str] = ()) -> ConfigError:
    """Return the error for a template whose output does not depend on its variable, but on others, if `used`."""
    hint = f"; it uses {', '.join(used)}" if used else ""
    if re.search(rf"(?<!{{){{\s*({variable})?\s*}}(?!}})", text):
        hint = f". In jinja a variable stands in two braces: write {{{{ {variable} }}}}"
    return ConfigError(
        f"{key} does not use `{variable}`, so its text is the same whatever that is: {text[:80]!r}{hint}"
    )
