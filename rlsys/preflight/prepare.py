"""What a run needs before Ray starts: checked configuration, model folder, tokenised prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rlsys.algorithms.requirements import corrections_of
from rlsys.config.schema import Config
from rlsys.config.templates import absolute_file, text_or_file
from rlsys.data import Row
from rlsys.data.encode import PromptEncoder, check_rows
from rlsys.data.order import EpochOrder, MixtureOrder, Order
from rlsys.data.sources import LoadedRows, absolute_sources, load, read, sources_of
from rlsys.errors import RlsysError
from rlsys.models.lora import check_adapters
from rlsys.models.resolve import context_length, load_tokenizer, resolve_model
from rlsys.preflight import checks as preflight
from rlsys.rewards.entry import absolute
from rlsys.types import Prompt

Say = Callable[[str], None]


@dataclass(frozen=True)
class EvalSet:
    """Held-out prompts of one source."""

    label: str
    prompts: list[Prompt]


@dataclass(frozen=True)
class Prepared:
    """A run that has passed every check."""

    config: Config
    model_path: str
    max_tokens: int  # of the longest trajectory that this run can make
    train_prompts: list[Prompt]
    train_order: Order
    eval_sets: list[EvalSet]

    def tokenizer(self) -> Any:
        """The policy's, with the run's chat template."""
        return _tokenizer(self.config, self.model_path)


def prepare(config: Config, say: Say = print, *, training: bool = True) -> Prepared:
    """Check everything, build the model where none is given. Raises RlsysError; starts no process.

    `training=False` is for `rlsys eval`, which needs no learner.
    """
    preflight.check_config(config, training=training)
    config = _self_contained(config)
    # A model built on the spot learns its tokenizer and its first steps from the training rows.
    wants_training_rows = training or config.model.path is None
    train = _load(config, "data.train") if wants_training_rows else []
    held_out = _load(config, "data.eval")
    model_path = resolve_model(
        config.model,
        seed=config.seed,
        prompt_column=config.data.prompt_column,
        train=train,
        held_out=held_out,
        corpus=_corpus(config, [row for loaded in train for row in loaded.rows]),
    )
    if training and config.learner.lora.rank > 0:
        check_adapters(model_path, config.learner.lora, trust_remote_code=config.model.trust_remote_code)
    longest_response = max(config.rollout.max_response_tokens, config.eval.max_response_tokens or 0)
    encoder = _encoder(config, model_path, longest_response)
    encoded = _encoded(encoder, train, say) if training else []
    eval_sets = [
        EvalSet(loaded.source.title, prompts)
        for loaded, prompts in zip(held_out, _encoded(encoder, held_out, say), strict=True)
    ]
    train_prompts = [prompt for part in encoded for prompt in part]
    if train_prompts:
        preflight.check_rewards(config.rewards, train_prompts, _titles(train))
        preflight.check_lengths(config, train_prompts)
    for eval_set, loaded in zip(eval_sets, held_out, strict=True):
        preflight.check_rewards(config.rewards, eval_set.prompts, loaded.source.name)
    every = train_prompts + [prompt for eval_set in eval_sets for prompt in eval_set.prompts]
    longest_prompt = max((len(prompt.token_ids) for prompt in every), default=0)
    order = _order(config, train, [len(part) for part in encoded])
    return Prepared(config, model_path, longest_prompt + longest_response, train_prompts, order, eval_sets)


def _self_contained(config: Config) -> Config:
    """Without anything that depends on a working directory, or that is null for "it depends"."""
    template, adapter = config.model.chat_template, config.model.adapter
    around = config.data.prompt_template
    return replace(
        config,
        model=replace(
            config.model,
            chat_template=None if template is None else text_or_file(template, "model.chat_template"),
            adapter=None if adapter is None else str(Path(adapter).expanduser().resolve()),
        ),
        data=replace(
            config.data,
            train=absolute_sources(config.data.train),
            eval=absolute_sources(config.data.eval),
            prompt_template=None if around is None else absolute_file(around),
        ),
        rewards=[absolute(spec) for spec in config.rewards],
        algorithm=replace(config.algorithm, corrections=corrections_of(config)),
    )


def _load(config: Config, key: str) -> list[LoadedRows]:
    """Every source of `data.train` or `data.eval`, with a prompt in every row."""
    data = config.data
    found = []
    for source in sources_of(data.eval if key == "data.eval" else data.train, key, data):
        if key == "data.eval" and source.limit is None:
            source = replace(source, limit=data.eval_limit)
        loaded = load(source, data, seed=config.seed)
        check_rows(loaded, data.prompt_column)
        found.append(loaded)
    return found


def _titles(parts: Sequence[LoadedRows]) -> str:
    return ", ".join(part.source.name for part in parts)


def _encoder(config: Config, model_path: str, longest_response: int) -> PromptEncoder:
    room = context_length(model_path, trust_remote_code=config.model.trust_remote_code) - longest_response
    wanted = config.data.max_prompt_tokens
    return PromptEncoder(_tokenizer(config, model_path), config.data, room if wanted is None else min(wanted, room))


def _tokenizer(config: Config, model_path: str) -> Any:
    model = config.model
    return load_tokenizer(model_path, trust_remote_code=model.trust_remote_code, chat_template=model.chat_template)


def _encoded(encoder: PromptEncoder, parts: Sequence[LoadedRows], say: Say) -> list[list[Prompt]]:
    """Prompts of each source, numbered through."""
    encoded: list[list[Prompt]] = []
    for loaded in parts:
        prompts, num_left_out = encoder.encode(loaded, first_index=sum(map(len, encoded)))
        if num_left_out:
            say(f"{loaded.source.name}: {num_left_out} of {len(loaded.rows)} prompts are too long and left out")
        encoded.append(prompts)
    return encoded


def _order(config: Config, parts: Sequence[LoadedRows], sizes: Sequence[int]) -> Order:
    """Of the training prompts; sources without weights are one data set."""
    weights = [part.source.weight for part in parts if part.source.weight is not None]
    if weights and len(sizes) > 1:
        return MixtureOrder(sizes, weights, config.seed, shuffle=config.data.shuffle)
    return EpochOrder(sum(sizes), [config.seed], shuffle=config.data.shuffle)


def _corpus(config: Config, train_rows: list[Row]) -> list[Row]:
    build = config.model.build.tokenizer
    if config.model.path is not None or build.kind != "bpe":
        return []
    if build.corpus is None:
        return train_rows
    try:
        return read(sources_of(build.corpus, "data.train", config.data)[0])
    except RlsysError as error:
        raise type(error)(f"model.build.tokenizer.corpus: {error}") from error
