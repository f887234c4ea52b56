"""From configuration to a model folder: an existing one, or one built on the spot and cached."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlsys.config.schema import ModelBuild, ModelConfig, TokenizerBuild
from rlsys.errors import ConfigError, DataError
from rlsys.models.tiny import PRINTABLE, build_model, build_tokenizer, check_build, save_model

Row = dict[str, Any]
Rows = Sequence[Row]


class Part(Protocol):
    """Rows of one source of data, which knows where each stands."""

    @property
    def rows(self) -> Rows: ...

    def where(self, index: int) -> str: ...


Parts = Sequence[Part]


def resolve_model(
    config: ModelConfig,
    *,
    seed: int,
    prompt_column: str,
    train: Parts,
    held_out: Parts,
    corpus: Rows,
    say: Callable[[str], None],
) -> str:
    """The model's folder or hub id. Raises ConfigError when `model.path` is neither."""
    if config.path is not None:
        return _existing(config.path, config.trust_remote_code)
    check_build(config.build)
    _check_alphabet(config.build.tokenizer, prompt_column, [*train, *held_out])
    if config.build.warmup.max_steps > 0 and config.build.warmup.target_accuracy < 1 and not held_out:
        raise ConfigError(
            "model.build.warmup.target_accuracy is measured on held-out rows, but data.eval is null: set data.eval, "
            "model.build.warmup.max_steps=0 or model.path"
        )
    digest = _digest(config.build, seed, prompt_column, _rows(train), _rows(held_out), corpus)
    folder = Path(config.cache_dir).expanduser() / f"{config.build.architecture}-{digest}"
    if (folder / "config.json").exists():
        return str(folder)
    say(f"building a {config.build.architecture} policy on the spot (cached afterwards in {folder})")
    accuracy = _build(config.build, folder, seed, prompt_column, train, held_out, corpus)
    if accuracy is not None:
        say(
            f"warmed up by supervised steps: greedy accuracy {accuracy:.3f} on {len(_rows(held_out))} held-out problems"
        )
    return str(folder)


def load_tokenizer(path: str, *, trust_remote_code: bool = False, chat_template: str | None = None) -> Any:
    """The tokenizer of a model folder or hub id, with another chat template if one is given; ConfigError when it has
    none."""
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path '{path}' has no usable tokenizer: {error}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers makes an empty one up where there is none
        raise ConfigError(f"model.path '{path}' has no usable tokenizer: it knows no tokens but special ones")
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


def context_length(path: str, *, trust_remote_code: bool = False) -> int:
    """Longest sequence the model takes, in tokens."""
    from transformers import AutoConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        return int(config.get_text_config().max_position_embeddings)
    except (OSError, ValueError, AttributeError) as error:
        raise ConfigError(f"model.path '{path}' has no usable config.json: {str(error).splitlines()[0]}") from error


def _existing(path: str, trust_remote_code: bool) -> str:
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model.path '{path}' is a folder without config.json: not a Hugging Face model")
        return str(folder.resolve())
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ConfigError(f"model.path '{path}': no such folder ({folder.resolve()})")
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise ConfigError(
            f"model.path '{path}' is neither a folder here nor a model that the hub gives{offline}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return path


def _digest(build: ModelBuild, seed: int, prompt_column: str, *rows: Rows) -> str:
    """Names a build by everything that shapes it: options, seed, and the rows it learns from."""
    shaped_by = [dataclasses.asdict(build), seed, prompt_column, *map(list, rows)]
    return hashlib.sha256(json.dumps(shaped_by, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _check_alphabet(config: TokenizerBuild, prompt_column: str, parts: Parts) -> None:
    """A character tokenizer drops what it does not know: refuse a prompt that it would change."""
    if config.kind != "chars":
        return
    alphabet = config.alphabet or PRINTABLE
    for loaded in parts:
        for index, row in enumerate(loaded.rows):
            unknown = sorted(set(str(row.get(prompt_column))) - set(alphabet))
            if unknown:
                raise DataError(
                    f"{loaded.where(index)}: the prompt has {unknown!r}, which the alphabet of the model built on the "
                    f"spot lacks ({alphabet!r}); extend model.build.tokenizer.alphabet, set its kind to bpe, or give "
                    "model.path"
                )


def _build(
    build: ModelBuild, folder: Path, seed: int, prompt_column: str, train: Parts, held_out: Parts, corpus: Rows
) -> float | None:
    strings = (value for row in corpus for value in row.values() if isinstance(value, str))
    tokenizer = build_tokenizer(build.tokenizer, strings)
    model = build_model(build, tokenizer, seed)
    accuracy = None
    if build.warmup.max_steps > 0:
        from rlsys.models.warmup import warm_up

        column = build.warmup.answer_column
        examples = [_examples(parts, tokenizer, prompt_column, column) for parts in (train, held_out)]
        accuracy = warm_up(model, examples[0], examples[1], build.warmup, seed)
    # Written aside and renamed: a killed build must not leave a folder that looks complete.
    folder.parent.mkdir(parents=True, exist_ok=True)
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    save_model(model, tokenizer, partial)
    if folder.exists():
        shutil.rmtree(partial)
    else:
        partial.rename(folder)
    return accuracy


def _examples(
    parts: Parts, tokenizer: Any, prompt_column: str, answer_column: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    examples = []
    for loaded in parts:
        for index, row in enumerate(loaded.rows):
            if not isinstance(row.get(answer_column), str) or not isinstance(row.get(prompt_column), str):
                raise DataError(
                    f"{loaded.where(index)}: a supervised warm-up needs text in '{prompt_column}' and '{answer_column}'"
                )
            prompt = tokenizer(row[prompt_column])["input_ids"]
            answer = [*tokenizer(row[answer_column])["input_ids"], tokenizer.eos_token_id]
            examples.append((np.array(prompt), np.array(answer)))
    return examples


def _rows(parts: Parts) -> list[Row]:
    return [row for loaded in parts for row in loaded.rows]
