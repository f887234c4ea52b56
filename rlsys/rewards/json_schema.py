"""JSON as a response: it must fit a schema."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rlsys.rewards import Scores, content, register

# [^\S\n] is white space within a line.
BLOCK = re.compile(r"^```[^\S\n]*(?:json)?[^\S\n]*\n(.*?)^```", re.DOTALL | re.MULTILINE | re.IGNORECASE)


def _validator(*, schema: Any, **_: Any) -> Any:
    """Return a validator of the schema. Raises ValueError if it is not a schema, or a file without one."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from jsonschema_specifications import REGISTRY

    if isinstance(schema, str):
        try:
            schema = json.loads(Path(schema).read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ValueError(f"schema: cannot read '{schema}' as JSON: {error}") from error
    if not isinstance(schema, Mapping | bool):
        raise ValueError(f"schema is {schema!r}; it must be a mapping or the path of a JSON file")
    kind = validator_for(schema, default=Draft202012Validator)
    try:
        kind.check_schema(schema)
    except SchemaError as error:
        raise ValueError(f"schema is not a JSON schema: {error.json_path}: {error.message}") from error
    # The registry holds only the specifications: a reference to anything else is an error, never a network request.
    return kind(schema, registry=REGISTRY)


@register("json_schema", imports=("jsonschema",), check=_validator, paths=("schema",))
def json_schema(completions: list[Any], *, schema: Any, fenced: bool = False, **_: Any) -> Scores:
    """Score 1 if the response is JSON that fits `schema`, else 0. NaN and Infinity are not JSON.

    Args:
        completions: the responses.
        schema: a JSON schema (draft 2020-12 unless its `$schema` says otherwise), or the path of a file that holds one
            and that every machine can read. `format` is not enforced, which is the specification's default.
        fenced: whether the JSON is in the last fenced block, without a language or marked `json`; a response without
            such a block gets 0.
    """
    validator = _validator(schema=schema)
    return [float(_fits(content(completion), validator, fenced)) for completion in completions]


def _fits(text: str, validator: Any, fenced: bool) -> bool:
    if fenced:
        # The last block: earlier ones may be drafts.
        blocks = BLOCK.findall(text)
        if not blocks:
            return False
        text = blocks[-1]
    try:
        value = json.loads(text, parse_constant=_refuse)
    except (ValueError, RecursionError):  # not JSON, or nested deeper than the parser goes
        return False
    return bool(validator.is_valid(value))


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not JSON")
