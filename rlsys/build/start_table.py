"""The table of what a run uses, as far as it is known before Ray starts. It is shown once: a wrong default is seen."""

from __future__ import annotations

import contextlib
from typing import Any

from rlsys.algorithms.requirements import learner_is_reference, needs_critic, reference_workers
from rlsys.config.cluster_address import cluster_address
from rlsys.config.effects import without_effect
from rlsys.config.schema import Config
from rlsys.models.folder import base_dtype
from rlsys.models.layout import choose_layout
from rlsys.models.resolve import model_facts
from rlsys.models.trial import folder_traits
from rlsys.preflight.model import layouts, unused_settings
from rlsys.preflight.prepared import Prepared
from rlsys.preflight.rewards import accuracy_note
from rlsys.weights.backend import weight_backend

Rows = list[tuple[str, str]]
# Beginnings of entries in generation_config.json that do not change what is sampled; end tokens have their own row.
NO_SETTING = (
    "_",
    "bos_token_id",
    "cache_",
    "eos_token_id",
    "output_",
    "pad_token_id",
    "return_",
    "transformers_",
    "use_cache",
)
MAX_CHARACTERS, MAX_IDS = 600, 48  # of a prompt; longer ones lose their middle


def start_table(prepared: Prepared) -> Rows:
    """Return labels and texts of what the run uses, resolved as far as it can be before workers exist."""
    config, tokenizer = prepared.config, prepared.tokenizer()
    facts = model_facts(prepared.model_path, trust_remote_code=config.model.trust_remote_code)
    longest = max(config.rollout.max_response_tokens, config.eval.max_response_tokens or 0)
    return [
        ("model", prepared.model_path),
        ("stop tokens", _stops(prepared)),
        *_prompt(prepared, tokenizer),
        (
            "context",
            f"at most {prepared.max_tokens} tokens: prompt {prepared.max_tokens - longest}, response {longest}; the "
            f"model takes {facts.max_context}",
        ),
        ("sampling", f"temperature {config.rollout.temperature:g}, from all tokens"),
        ("evaluation", _evaluation(prepared)),
        ("accuracy", accuracy_note(config)),
        ("ignored", _ignored(prepared)),
        ("no effect", _no_effect(config)),
        ("dtype", _dtype(prepared)),
        ("attention", _layouts(prepared)),
        ("workers", _workers(config)),
        ("devices", _devices(config)),
    ]


def _stops(prepared: Prepared) -> str:
    if prepared.config.rollout.ignore_eos:
        return "none: rollout.ignore_eos=true, every response has rollout.max_response_tokens tokens"
    return ", ".join(f"{stop.text!r} {stop.id} ({', '.join(stop.sources)})" for stop in prepared.stop_tokens)


def _prompt(prepared: Prepared, tokenizer: Any) -> Rows:
    """Return how prompts are made, and the first one: its text as the model sees it, and its ids."""
    data, model = prepared.config.data, prepared.config.model
    first = prepared.train_prompts[prepared.train_order.at(0)]
    chat = "model.chat_template" if model.chat_template is not None else "the tokenizer's chat template"
    parts = ["data.prompt_template"] if data.prompt_template is not None else []
    parts += [chat] if first.is_conversation else []
    ids = [int(number) for number in first.token_ids]
    shown = ids if len(ids) <= MAX_IDS else [*ids[: MAX_IDS // 2], "...", *ids[-MAX_IDS // 2 :]]
    return [
        ("template", ", then ".join(parts) or "none: the text of the row as it is"),
        ("first prompt", _shortened(repr(tokenizer.decode(ids)))),
        ("its ids", f"{' '.join(map(str, shown))} ({len(ids)} tokens)"),
    ]


def _shortened(text: str) -> str:
    half = MAX_CHARACTERS // 2
    return text if len(text) <= MAX_CHARACTERS else f"{text[:half]} ... {text[-half:]}"


def _evaluation(prepared: Prepared) -> str:
    config = prepared.config
    if not config.eval.every or not prepared.eval_sets:
        return "none, for eval.every=0" if prepared.eval_sets else "none, for data.eval=null"
    count, temperature = config.eval.num_samples, config.eval.temperature
    drawn = f", and {count} at temperature {temperature:g}" if count else ""
    return f"greedy{drawn}, every {config.eval.every} steps"


def _ignored(prepared: Prepared) -> str:
    """Return the settings in the model's own files that this run does not follow."""
    from transformers import GenerationConfig

    path, trusts = prepared.model_path, prepared.config.model.trust_remote_code
    own = unused_settings(path, trust_remote_code=trusts)
    dtype = str(base_dtype(path, trust_remote_code=trusts)).removeprefix("torch.")
    own += [f"dtype {dtype} (learner.dtype decides)"] if dtype != prepared.config.learner.dtype else []
    found = [f"config.json: {', '.join(own)}"] if own else []
    with contextlib.suppress(OSError):  # a model without that file
        sampling = GenerationConfig.from_pretrained(path).to_diff_dict()
        names = [f"{name} {value}" for name, value in sorted(sampling.items()) if not name.startswith(NO_SETTING)]
        found += [f"generation_config.json: {', '.join(names)} (rollout.* decides)"] if names else []
    return "; ".join(found) or "nothing in the model's own files"


def _no_effect(config: Config) -> str:
    """Return the options that were set in vain, together with those that lack the same."""
    keys: dict[str, list[str]] = {}
    for key, missing in without_effect(config).items():
        keys.setdefault(missing, []).append(key)
    return (
        "; ".join(f"{', '.join(each)} (without {missing})" for missing, each in keys.items()) or "no option that is set"
    )


def _dtype(prepared: Prepared) -> str:
    config = prepared.config
    saved = config.checkpoint.dtype or base_dtype(prepared.model_path, trust_remote_code=config.model.trust_remote_code)
    saved_as = str(saved).removeprefix("torch.")
    return f"learner {config.learner.dtype}, engines {config.engine_dtype}, optimizer float32, saved {saved_as}"


def _layouts(prepared: Prepared) -> str:
    """Return the layout of each role's batches, found by a trial on a small copy of the model."""
    config = prepared.config
    traits = folder_traits(prepared.model_path, trust_remote_code=config.model.trust_remote_code)
    wanted = layouts(config)
    if traits is None:
        text = ", ".join(f"{role} {packing}" for role, packing in wanted.items())
        return f"{text} (the trial is on the workers, which log the layout when they are ready)"
    text = ", ".join(f"{role} {choose_layout(packing, traits)}" for role, packing in wanted.items())
    return f"{text} (not packed: {traits.packing})" if traits.packing is not None else text


def _workers(config: Config) -> str:
    rollout, learner = config.rollout, config.learner
    parts = [
        f"rollout {rollout.num_workers} (tensor parallel {rollout.tensor_parallel_size})",
        f"learner {learner.num_workers} (ZeRO {learner.zero_stage})",
    ]
    if needs_critic(config):
        parts.append(f"critic {config.critic.num_workers} (ZeRO {config.critic.zero_stage})")
    if learner_is_reference(config):
        parts.append("reference: the learner without its adapter")
    else:
        parts.append(f"reference {reference_workers(config) or 'none'}")
    if config.has_episodes:
        parts.append(f"episodes {config.episodes.num_workers}")
    return ", ".join([*parts, f"scoring {config.scoring.num_workers}"])


def _devices(config: Config) -> str:
    joined = cluster_address(config.cluster)
    where = "a local Ray" if joined is None else f"the Ray cluster {joined[0]} ({joined[1]})"
    kind = f"{config.cluster.num_gpus} GPUs" if config.cluster.num_gpus else "CPUs only"
    return f"{kind}, on {where}; new weights travel by {weight_backend(config)}"
