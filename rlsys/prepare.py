"""What a run needs before Ray starts: checked configuration, model folder, tokenised prompts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from rlsys import preflight
from rlsys.config import Config
from rlsys.data import Row
from rlsys.data.load import PromptEncoder, check_rows, load_rows
from rlsys.errors import RlsysError
from rlsys.models.resolve import context_length, load_tokenizer, resolve_model
from rlsys.needs import corrections_of
from rlsys.scoring.call import absolute
from rlsys.types import Prompt

Say = Callable[[str], None]


@dataclass(frozen=True)
class Prepared:
    """A run that has passed every check."""

    config: Config
    model_path: str
    max_tokens: int  # of the longest trajectory that this run can make
    train_prompts: list[Prompt]
    eval_prompts: list[Prompt]


def prepare(config: Config, say: Say = print, *, training: bool = True) -> Prepared:
    """Check everything, build the model where none is given. Raises RlsysError; starts no process.

    `training=False` is for `rlsys eval`, which needs no learner.
    """
    preflight.check_config(config, training=training)
    config = replace(
        config,
        rewards=[absolute(spec) for spec in config.rewards],
        algorithm=replace(config.algorithm, corrections=corrections_of(config)),
    )
    # A model built on the spot learns its tokenizer and its first steps from the training rows.
    wants_training_rows = training or config.model.path is None
    train_rows = _checked_rows(config, config.data.train, config.data.train_split) if wants_training_rows else []
    eval_rows: list[Row] = []
    if config.data.eval is not None:
        eval_rows = _checked_rows(config, config.data.eval, config.data.eval_split, limit=config.data.eval_limit)
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
    longest_response = max(config.rollout.max_response_tokens, config.eval.max_response_tokens or 0)
    room = context - longest_response
    train_prompts = encoder.encode(train_rows, config.data.train, room) if training else []
    eval_prompts = encoder.encode(eval_rows, str(config.data.eval), room) if eval_rows else []
    if train_prompts:
        preflight.check_rewards(config.rewards, train_prompts, config.data.train)
        preflight.check_lengths(config, train_prompts)
    if eval_prompts:
        preflight.check_rewards(config.rewards, eval_prompts, str(config.data.eval))
    longest_prompt = max((len(prompt.token_ids) for prompt in train_prompts + eval_prompts), default=0)
    return Prepared(config, model_path, longest_prompt + longest_response, train_prompts, eval_prompts)


def _checked_rows(config: Config, name: str, split: str, limit: int | None = None) -> list[Row]:
    rows = load_rows(name, split, config.data)[:limit]
    check_rows(rows, name, config.data.prompt_column)
    return rows


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
