"""Templates: an option holds the text, or the name of a file with it, and the text must use what it is given."""

from __future__ import annotations

import re
from collections.abc import Callable

from rlsys.config.paths import absolute, expand, is_file, read_text
from rlsys.errors import ConfigError

# Two values that a template is tried with: other words, lengths and numbers, so that `content | length` differs too.
TRIALS = ("1", "twenty-three 23")


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


def check_uses(variable: str, render: Callable[[str], str], text: str, key: str) -> None:
    """Raise ConfigError unless the output of a template depends on a variable.

    Args:
        variable: its name.
        render: fills a value of it into the template. What it raises for the trial's values proves nothing, so that is
            left to the first real value, whose row can be named.
        text: the template, for the message.
        key: the option that holds it, for messages.
    """
    try:
        first, second = (render(value) for value in TRIALS)
    except Exception:  # templates run code: they may raise anything
        return
    if first == second:
        hint = ""
        if re.search(rf"(?<!{{){{\s*({variable})?\s*}}(?!}})", text):
            hint = f". In jinja a variable stands in two braces: write {{{{ {variable} }}}}"
        raise ConfigError(
            f"{key} does not use `{variable}`: its text is the same whatever that is: {first[:80]!r}{hint}"
        )
