"""What a run needs before Ray starts: checked configuration, model folder, tokenised prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from rlsys import preflight
from rlsys.config import Config
from rlsys.data import Row
from rlsys.data.load import PromptEncoder, check_rows, load_rows
from rlsys.errors import RlsysError
from rlsys.models.resolve import context_length, load_tokenizer, resolve_model
from rlsys.types import Prompt

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A run that has passed every check."""

    config: Config
    model_path: str
    context: int
    train_prompts: list[Prompt]
    eval_prompts: list[Prompt]


def prepare(config: Config, say: Say = print) -> Prepared:
    """Check everything, build the model where none is given. Raises RlsysError; starts no process."""
    preflight.check_config(config)
    train_rows = load_rows(config.data.train, config.data.train_split, config.data)
    check_rows(train_rows, config.data.train, config.data.prompt_column)
    eval_rows: list[Row] = []
    if config.data.eval is not None:
        eval_rows = load_rows(config.data.eval, config.data.eval_split, config.data)
        eval_rows = eval_rows[: config.data.eval_limit]
        check_rows(eval_rows, config.data.eval, config.data.prompt_column)
    model_path = resolve_model(
        config.model,
        seed=config.seed,
        prompt_column=config.data.prompt_column,
        train=train_rows,
        held_out=eval_rows,
        corpus=_corpus(config, train_rows),
        say=say,
    )
    trust = config.model.trust_remote_code
    context = context_length(model_path, trust_remote_code=trust)
    encoder = PromptEncoder(load_tokenizer(model_path, trust_remote_code=trust), config.data)
    room = context - config.rollout.max_response_tokens
    train_prompts = encoder.encode(train_rows, config.data.train, room)
    eval_prompts = encoder.encode(eval_rows, str(config.data.eval), room) if eval_rows else []
    preflight.check_lengths(config, train_prompts + eval_prompts)
    preflight.check_rewards(config.rewards, train_prompts)
    return Prepared(config, model_path, context, train_prompts, eval_prompts)


def _corpus(config: Config, train_rows: list[Row]) -> list[Row]:
    build = config.model.build.tokenizer
    if config.model.path is not None or build.kind != "bpe":
        return []
    if build.corpus is None:
        return train_rows
    try:
        return load_rows(build.corpus, config.data.train_split, config.data)
    except RlsysError as error:
        raise type(error)(f"model.build.tokenizer.corpus: {error}") from error
