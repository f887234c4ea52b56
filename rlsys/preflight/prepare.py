"""Preparation of a run before Ray starts: checked configuration, model folder, tokenised prompts."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace

from rlsys.algorithms.requirements import corrections_of
from rlsys.config.algorithm_schema import AlgorithmConfig
from rlsys.config.paths import absolute, absolute_function, absolute_if_there, absolute_node
from rlsys.config.schema import Config
from rlsys.config.templates import absolute_template, text_or_file
from rlsys.data import Row
from rlsys.data.encode import PromptEncoder, check_rows
from rlsys.data.loading import LoadedRows, load, read
from rlsys.data.order import EpochOrder, MixtureOrder, Order
from rlsys.data.sources import absolute_options, absolute_sources, sources_of
from rlsys.environments.entry import absolute as absolute_environment
from rlsys.errors import ConfigError, RlsysError
from rlsys.models.lora import adapted_layers, layers_in
from rlsys.models.resolve import ModelFacts, model_facts, resolve_model
from rlsys.preflight.adapters import check_quantized_model
from rlsys.preflight.checks import check_config, check_lengths, check_machine
from rlsys.preflight.episodes import check_episodes
from rlsys.preflight.model import check_model
from rlsys.preflight.prepared import EvalSet, Prepared, run_tokenizer
from rlsys.preflight.rewards import accuracy_note, check_rewards
from rlsys.preflight.saving import check_saving
from rlsys.preflight.stops import stop_tokens
from rlsys.rewards.entry import absolute as absolute_reward
from rlsys.types import Prompt

logger = logging.getLogger(__name__)


def prepare(config: Config, *, training: bool = True) -> Prepared:
    """Check everything, load the data, and build the model when none is given. Raise RlsysError; start no process.

    `training=False` is for `rlsys eval`, which needs no learner.
    """
    check_config(config, training=training)
    check_machine(config, training=training)
    # From here on files of data, rewards, templates, adapter and algorithm do not depend on the working directory.
    config = _self_contained(config)
    # A model built on the spot learns its tokenizer and its first steps from the training rows.
    needs_training_rows = training or config.model.path is None
    train = _load(config, "data.train") if needs_training_rows else []
    held_out = _load(config, "data.eval")
    model_path = _model(config, train, held_out)
    if training:
        check_quantized_model(config, model_path)
        check_saving(config, model_path)
    layers = _adapted_layers(config, model_path, training=training)
    # Prompts must leave room for the longest response, of training or evaluation.
    longest_response = max(config.rollout.max_response_tokens, config.eval.max_response_tokens or 0)
    facts = model_facts(model_path, trust_remote_code=config.model.trust_remote_code)
    tokenizer = run_tokenizer(config, model_path)
    if config.has_episodes:
        config = check_episodes(config, tokenizer, facts.max_context)
    room = _prompt_room(config, facts, longest_response)
    encoder = PromptEncoder(tokenizer, config.data, max_prompt_tokens=room, vocab_rows=facts.vocab_rows)
    encoded = _encoded(encoder, train) if training else []
    eval_sets = [
        EvalSet(loaded.source.title, prompts)
        for loaded, prompts in zip(held_out, _encoded(encoder, held_out), strict=True)
    ]
    train_prompts = [prompt for part in encoded for prompt in part]
    if train_prompts:
        check_rewards(config.rewards, train_prompts, ", ".join(part.source.name for part in train))
        check_lengths(config, train_prompts)
    # Held-out rows may have other columns than the training rows, and the rewards read those too.
    for eval_set, loaded in zip(eval_sets, held_out, strict=True):
        check_rewards(config.rewards, eval_set.prompts, loaded.source.name)
    note = accuracy_note(config)
    if eval_sets and not training:  # the table at a run's start has it
        logger.info("accuracy: %s", note)
    every = train_prompts + [prompt for eval_set in eval_sets for prompt in eval_set.prompts]
    longest_prompt = max((len(prompt.token_ids) for prompt in every), default=0)
    stops = stop_tokens(
        tokenizer,
        facts,
        end_of_turn=encoder.end_of_turn() if any(prompt.is_conversation for prompt in every) else None,
        chosen=config.rollout.stop,
        needs_one=not config.rollout.ignore_eos,
    )
    # An episode's prompt is followed by any number of turns.
    max_tokens = config.episodes.max_tokens if config.has_episodes else longest_prompt + longest_response
    assert max_tokens is not None
    if training:
        check_model(config, model_path, max_tokens)
    order = _order(config, train, [len(part) for part in encoded])
    return Prepared(config, model_path, max_tokens, train_prompts, order, eval_sets, stops, layers)


def _model(config: Config, train: list[LoadedRows], held_out: list[LoadedRows]) -> str:
    """Return the model's folder or hub id, built where none is given."""
    shown = _load(config, "model.build.warmup.data")
    return resolve_model(
        config.model,
        seed=config.seed,
        prompt_column=config.data.prompt_column,
        train=shown or train,
        held_out=shown or held_out,
        corpus=_corpus(config, [row for loaded in train for row in loaded.rows]),
        others=[*train, *held_out],
    )


def _adapted_layers(config: Config, model_path: str, *, training: bool) -> tuple[str, ...]:
    """Return the layers with adapters; ConfigError when the options of `learner.lora` fit none."""
    lora, given = config.learner.lora, config.model.adapter
    if given is not None and not training:  # it is served as it is
        return layers_in(given)
    return adapted_layers(model_path, lora, trust_remote_code=config.model.trust_remote_code) if lora.rank > 0 else ()


def _self_contained(config: Config) -> Config:
    """Return the configuration with absolute file names, templates read, and automatic corrections written out."""
    model, data, tokenizer = config.model, config.data, config.model.build.tokenizer
    template, around = model.chat_template, data.prompt_template
    if template is not None:
        template = text_or_file(template, "model.chat_template", variable="messages")
    return replace(
        config,
        model=replace(
            model,
            path=absolute_if_there(model.path),
            build=replace(
                model.build,
                tokenizer=replace(tokenizer, corpus=absolute_sources(tokenizer.corpus)),
                warmup=replace(model.build.warmup, data=absolute_sources(model.build.warmup.data)),
            ),
            cache_dir=absolute(model.cache_dir),
            chat_template=template,
            adapter=None if model.adapter is None else absolute(model.adapter),
        ),
        data=replace(
            data,
            train=absolute_sources(data.train),
            eval=absolute_sources(data.eval),
            options=absolute_options([data.train, data.eval], data.options),
            prompt_template=None if around is None else absolute_template(around),
            # Turns are messages, so a plain prompt is the user's first one.
            chat_template=data.chat_template or config.has_episodes,
        ),
        rewards=[absolute_reward(spec) for spec in config.rewards],
        environment=absolute_environment(config.environment),
        tools=[absolute_function(name) for name in config.tools],
        algorithm=_absolute_functions(replace(config.algorithm, corrections=corrections_of(config))),
    )


def _absolute_functions(algorithm: AlgorithmConfig) -> AlgorithmConfig:
    """Make the files of `path.py:function` absolute: workers run in other folders."""
    return replace(
        algorithm,
        advantage=absolute_node(algorithm.advantage),
        policy_loss=absolute_node(algorithm.policy_loss),
        aggregation=absolute_node(algorithm.aggregation),
        corrections=[absolute_node(node) for node in algorithm.corrections or []],
        kl=replace(algorithm.kl, name=absolute_function(algorithm.kl.name)),
    )


def _load(config: Config, key: str) -> list[LoadedRows]:
    """Load every source that an option names, and check that every row has a prompt."""
    data, warmup = config.data, config.model.build.warmup
    values = {
        "data.train": data.train,
        "data.eval": data.eval,
        "model.build.warmup.data": warmup.data if config.model.path is None and warmup.max_steps else None,
    }
    found = []
    for source in sources_of(values[key], key, data):
        if key == "data.eval" and source.limit is None:
            source = replace(source, limit=data.eval_limit)
        loaded = load(source, data, seed=config.seed)
        check_rows(loaded, data.prompt_column)
        found.append(loaded)
    return found


def _prompt_room(config: Config, facts: ModelFacts, longest_response: int) -> int:
    """Return the length of the longest prompt that is accepted; ConfigError when responses leave no room for any."""
    room = facts.max_context - longest_response
    if room < 1:
        is_eval = (config.eval.max_response_tokens or 0) == longest_response
        key = "eval.max_response_tokens" if is_eval else "rollout.max_response_tokens"
        remedy = "raise model.build.max_context" if config.model.path is None else "use a model with a longer context"
        raise ConfigError(
            f"{key}={longest_response} leaves no room for a prompt in the model's context of {facts.max_context} "
            f"tokens: lower it to less than {facts.max_context}, or {remedy}"
        )
    return min(room, config.data.max_prompt_tokens or room)


def _encoded(encoder: PromptEncoder, parts: Sequence[LoadedRows]) -> list[list[Prompt]]:
    """Return the prompts of each source; their numbers run on from one source to the next."""
    encoded: list[list[Prompt]] = []
    for loaded in parts:
        prompts, num_left_out = encoder.encode(loaded, first_index=sum(map(len, encoded)))
        if num_left_out:
            logger.warning(
                "%s: %d of %d prompts are too long and left out", loaded.source.name, num_left_out, len(loaded.rows)
            )
        encoded.append(prompts)
    return encoded


def _order(config: Config, parts: Sequence[LoadedRows], sizes: Sequence[int]) -> Order:
    """Return the order of the training prompts; sources without weights count as a single data set."""
    weights = [part.source.weight for part in parts if part.source.weight is not None]
    if weights and len(sizes) > 1:
        return MixtureOrder(sizes, weights, config.seed, shuffle=config.data.shuffle)
    # The seed alone, without a constant as in mixtures: runs that began before there were mixtures resume in the same
    # order.
    return EpochOrder(sum(sizes), [config.seed], shuffle=config.data.shuffle)


def _corpus(config: Config, train_rows: list[Row]) -> list[Row]:
    """Return the rows that a BPE tokenizer of a model built on the spot is trained on; none for any other model."""
    build = config.model.build.tokenizer
    if config.model.path is not None or build.kind != "bpe":
        return []
    if build.corpus is None:
        return train_rows
    try:
        return read(sources_of(build.corpus, "data.train", config.data)[0])
    except RlsysError as error:
        raise type(error)(f"model.build.tokenizer.corpus: {error}") from error
