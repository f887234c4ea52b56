"""The folder of the run's model: the one that the configuration names, or one built on the spot and cached."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import logging
import os
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlsys.config.build_schema import ModelBuild, TokenizerBuild
from rlsys.config.schema import ModelConfig
from rlsys.data import Row
from rlsys.errors import ConfigError, DataError
from rlsys.models.tiny import PRINTABLE, build_model, build_tokenizer, check_build, save_model

Rows = Sequence[Row]
# Part of the names of cached models. Raise it when the same options and rows come to build another model.
RECIPE = 2

logger = logging.getLogger(__name__)


class Part(Protocol):
    """Rows of one data source, with the position of each for messages."""

    @property
    def rows(self) -> Rows:
        """The rows."""
        ...

    def where(self, index: int) -> str:
        """Return file and line of a row, or its number."""
        ...


Parts = Sequence[Part]


def resolve_model(
    config: ModelConfig,
    *,
    seed: int,
    prompt_column: str,
    train: Parts,
    held_out: Parts,
    corpus: Rows,
    others: Parts = (),
) -> str:
    """Return the model's folder or hub id, building the model where `model.path` is null.

    Args:
        config: the options of `model`.
        seed: seed of the initial weights and the warm-up's batches.
        prompt_column: the column of prompts in all rows.
        train: rows for the warm-up's supervised steps.
        held_out: rows for its accuracy.
        corpus: rows that a BPE tokenizer is trained on.
        others: rows whose prompts the model must know too.

    Raises:
        ConfigError: `model.path` is neither a model's folder nor a hub id, or the model cannot be built.
        DataError: a row does not fit the model's alphabet or the warm-up.
    """
    if config.path is not None:
        return _existing(config.path, config.trust_remote_code)
    check_build(config.build)
    _check_alphabet(config.build.tokenizer, prompt_column, [*train, *held_out, *others])
    if config.build.warmup.max_steps > 0 and config.build.warmup.target_accuracy < 1 and not held_out:
        raise ConfigError(
            "model.build.warmup.target_accuracy is measured on held-out rows, but data.eval is null: set data.eval, or "
            "turn the warm-up off with model.build.warmup.max_steps=0, or give model.path"
        )
    digest = _digest(config.build, seed, prompt_column, config.chat_template, _rows(train), _rows(held_out), corpus)
    folder = Path(config.cache_dir).expanduser() / f"{config.build.architecture}-{digest}"
    if (folder / "config.json").exists():
        return str(folder)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder.parent).close()
    except OSError as error:  # before the minutes of building
        raise ConfigError(
            f"model.cache_dir={config.cache_dir} cannot be written ({error.strerror}): name another folder"
        ) from error
    logger.info("building a %s policy on the spot (cached afterwards in %s)", config.build.architecture, folder)
    accuracy = _build(config, folder, seed, prompt_column, train, held_out, corpus)
    if accuracy is not None:
        logger.info(
            "warmed up by supervised steps: greedy accuracy %.3f on %d held-out problems",
            accuracy,
            len(_rows(held_out)),
        )
    return str(folder)


def load_tokenizer(path: str, *, trust_remote_code: bool = False, chat_template: str | None = None) -> Any:
    """Return the tokenizer of a model folder or hub id, with `chat_template` in place of its own if given.

    Raises:
        ConfigError: the model has no usable tokenizer.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        raise ConfigError(f"model.path '{path}' has no usable tokenizer: {error}") from error
    if len(tokenizer) <= len(tokenizer.all_special_tokens):  # transformers invents an empty one for a folder without
        raise ConfigError(f"model.path '{path}' has no usable tokenizer: it has only special tokens")
    if chat_template is not None:
        tokenizer.chat_template = chat_template
    return tokenizer


@dataclass(frozen=True)
class ModelFacts:
    """The facts about a model that are known without its weights, from config.json and generation_config.json."""

    max_context: int  # longest sequence in tokens
    vocab_rows: int  # token ids that the embedding has rows for; a tokenizer may have more
    end_ids: Mapping[str, tuple[int, ...]]  # ids that end a response, by the file that names them


def model_facts(path: str, *, trust_remote_code: bool = False) -> ModelFacts:
    """Read the facts of a model folder or hub id. Raise ConfigError for a config.json that lacks them."""
    from transformers import AutoConfig, GenerationConfig

    try:
        config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
        text = config.get_text_config()
        context, rows = int(text.max_position_embeddings), int(text.vocab_size)
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise ConfigError(f"model.path '{path}' has no usable config.json: {str(error).splitlines()[0]}") from error
    ends = {"config.json": _ids(getattr(config, "eos_token_id", None)) + _ids(getattr(text, "eos_token_id", None))}
    with contextlib.suppress(OSError):  # a model without that file; vLLM reads it in the same way
        ends["generation_config.json"] = _ids(GenerationConfig.from_pretrained(path).eos_token_id)
    return ModelFacts(context, rows, ends)


def _ids(value: Any) -> tuple[int, ...]:
    return tuple(value) if isinstance(value, list | tuple) else () if value is None else (int(value),)


def _existing(path: str, trust_remote_code: bool) -> str:
    """Return the absolute folder or the hub id that `path` names; ConfigError when it names neither."""
    folder = Path(path).expanduser()
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise ConfigError(f"model.path '{path}' is a folder without config.json: not a Hugging Face model")
        return str(folder.resolve())
    # A hub id is `name` or `owner/name`: a path with more slashes was meant as a folder.
    if path.startswith((".", "/", "~")) or path.count("/") > 1:
        raise ConfigError(f"model.path '{path}': no such folder ({folder.resolve()})")
    from transformers import AutoConfig

    try:
        AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    except (OSError, ValueError) as error:
        offline = " (HF_HUB_OFFLINE is set)" if os.environ.get("HF_HUB_OFFLINE") == "1" else ""
        raise ConfigError(
            f"model.path '{path}' is neither a folder on this machine nor a model on the hub{offline}: "
            f"{str(error).splitlines()[0]}"
        ) from error
    return path


def _digest(build: ModelBuild, seed: int, prompt_column: str, chat_template: str | None, *rows: Rows) -> str:
    """Return a name made of everything that shapes a build: recipe, options, seed, and the rows it learns from."""
    # The corpus counts by its rows, not by where it lies; and so do the rows of a warm-up.
    warmup = dataclasses.replace(build.warmup, data=None)
    build = dataclasses.replace(build, tokenizer=dataclasses.replace(build.tokenizer, corpus=None), warmup=warmup)
    shaped_by = [RECIPE, dataclasses.asdict(build), seed, prompt_column, chat_template, *map(list, rows)]
    return hashlib.sha256(json.dumps(shaped_by, sort_keys=True, default=str).encode()).hexdigest()[:12]


def _check_alphabet(config: TokenizerBuild, prompt_column: str, parts: Parts) -> None:
    """Raise DataError for a prompt with a character outside the alphabet, which the tokenizer would drop silently."""
    if config.kind != "chars":
        return
    alphabet = config.alphabet or PRINTABLE
    for loaded in parts:
        for index, row in enumerate(loaded.rows):
            unknown = sorted(set(_letters(row.get(prompt_column))) - set(alphabet))
            if unknown:
                raise DataError(
                    f"{loaded.where(index)}: the prompt has {unknown!r}, which the alphabet of the model built on the "
                    f"spot lacks ({alphabet!r}); extend model.build.tokenizer.alphabet, set "
                    "model.build.tokenizer.kind=bpe, or give model.path"
                )


def _letters(prompt: Any) -> str:
    return "".join(str(message.get("content")) for message in prompt) if isinstance(prompt, list) else str(prompt)


def _build(
    config: ModelConfig, folder: Path, seed: int, prompt_column: str, train: Parts, held_out: Parts, corpus: Rows
) -> float | None:
    """Write the model to `folder`; return the warm-up's accuracy, or None without a warm-up."""
    build = config.build
    # Every text column: a BPE tokenizer should know prompts and answers.
    strings = (value for row in corpus for value in row.values() if isinstance(value, str))
    tokenizer = build_tokenizer(build.tokenizer, strings)
    tokenizer.chat_template = config.chat_template or tokenizer.chat_template
    model = build_model(build, tokenizer, seed)
    accuracy = None
    if build.warmup.max_steps > 0:
        from rlsys.models.warmup import warm_up

        column = build.warmup.answer_column
        examples = [_examples(parts, tokenizer, prompt_column, column) for parts in (train, held_out)]
        logger.info("warming it up by at most %d supervised steps", build.warmup.max_steps)
        accuracy = warm_up(model, examples[0], examples[1], build.warmup, seed)
    # Written to another name and renamed: a killed build must not leave a folder that looks complete. The other name is
    # in the same folder, because a rename works only within one file system.
    partial = Path(tempfile.mkdtemp(dir=folder.parent, prefix=".partial-"))
    save_model(model, tokenizer, partial)
    try:
        partial.rename(folder)
    except OSError:
        if not (folder / "config.json").is_file():
            raise
        shutil.rmtree(partial)  # another run has built the same model meanwhile
    return accuracy


def _examples(
    parts: Parts, tokenizer: Any, prompt_column: str, answer_column: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """Return prompt and answer ids (with the end token) of every row; DataError for a row without text in both."""
    examples = []
    for loaded in parts:
        for index, row in enumerate(loaded.rows):
            prompt = row.get(prompt_column)
            if not isinstance(row.get(answer_column), str) or not isinstance(prompt, str | list):
                raise DataError(
                    f"{loaded.where(index)}: a supervised warm-up needs text in '{prompt_column}' and "
                    f"'{answer_column}', or messages in the first"
                )
            if isinstance(prompt, list):
                prompt = tokenizer.apply_chat_template(
                    prompt, tools=row.get("tools"), tokenize=False, add_generation_prompt=True
                )
            prompt = tokenizer(prompt)["input_ids"]
            answer = [*tokenizer(row[answer_column])["input_ids"], tokenizer.eos_token_id]
            examples.append((np.array(prompt), np.array(answer)))
    return examples


def _rows(parts: Parts) -> list[Row]:
    return [row for loaded in parts for row in loaded.rows]
