"""Rules that OpenRLHF's table cannot express: value maps, batches, lengths, corrections, rewards, data.

It counts prompts to sample (`rollout.batch_size`) and samples to train on (`train.batch_size`): an update of the latter
is a part of a step.
"""

from __future__ import annotations

from typing import Any

from rlsys.commands.importers.dialects import shared
from rlsys.commands.importers.options import Noted, UnsupportedError
from rlsys.commands.importers.recipe import ABSENT, Recipe
from rlsys.errors import ConfigError

ESTIMATORS: dict[str, Any] = {
    "gae": {"name": "gae"},
    "reinforce": {"name": "reinforce_pp"},
    "reinforce_baseline": {"name": "reinforce_pp_baseline"},
    "rloo": {"name": "rloo"},
    "group_norm": {"name": "grpo", "eps": 1e-9},  # what OpenRLHF adds to the deviation
    "dr_grpo": {"name": "dr_grpo"},
    "flash_reinforce": UnsupportedError(
        "rlsys has no estimator that subtracts the mean of the whole batch and divides by nothing, so reinforce_pp was "
        "written, which divides by the standard deviation",
        {"name": "reinforce_pp"},
    ),
}
AGGREGATIONS = {"token-mean": {"name": "token_mean"}, "seq-mean-token-mean": {"name": "sequence_mean"}}
# The correction's type before 0.11.2, in the words since: level and mode.
CORRECTIONS = {"tis": ("token", "clip"), "icepop": ("token", "mask"), "seq-mask-tis": ("seq", "mask")}
IS = "algo.advantage.is_correction_"
REMOTE_FUNCTION = (
    "rlsys calls it as OpenRLHF does, but without the chat template's tokens in queries and prompts; the file is "
    "looked up in the folder where the run starts"
)
REMOTE_SERVER = (
    "rlsys sends query, prompts and labels as OpenRLHF does, but without the chat template's tokens, and reads nothing "
    "but the rewards of the response"
)


def minibatches(recipe: Recipe, update: Any) -> int:
    """Return the updates of a step: a rollout is counted in prompts there, an update in samples."""
    prompts, samples = (int(recipe.value(f"rollout.{name}")) for name in ("batch_size", "n_samples_per_prompt"))
    counted = f"the {prompts * samples} samples of a rollout (rollout.batch_size={prompts} prompts of {samples})"
    count = shared.whole_updates("train.batch_size", update, prompts * samples, counted)
    if count > prompts:
        raise UnsupportedError(
            f"{count} updates per step of {prompts} prompts: rlsys keeps the samples of a prompt together, so "
            f"train.minibatches_per_step={prompts} was written",
            prompts,
        )
    return count


def episodes(recipe: Recipe, count: Any) -> int:
    """Return the steps that go `count` times over the data, or over its first `data.max_samples` rows."""
    rows, limit = recipe.size.num_rows, recipe.value("data.max_samples")
    if rows is None and limit is not None:
        recipe.note(
            "data.max_samples", "read as the number of rows; to train on no more rows, cut the data with data.options"
        )
    known = min([int(number) for number in (rows, limit) if number is not None], default=None)
    if known is None:
        raise UnsupportedError(shared.NEEDS_ROWS)
    return int(count) * max(known // int(recipe.written["train.prompts_per_step"]), 1)


def kl_place(recipe: Recipe, in_loss: Any) -> Any:
    """Return where the KL penalty is applied."""
    if in_loss or recipe.value("algo.advantage.estimator") == "gae":
        return "loss" if in_loss else "reward"
    return Noted("reward", "OpenRLHF subtracts the KL penalty per token, rlsys per response")


def settle(recipe: Recipe) -> None:
    """Settle the correction that releases before 0.11.2 ask for by its type in the words since: level and mode."""
    kind = "icepop" if recipe.value("use_icepop") else recipe.value(f"{IS}type") or "tis"
    if recipe.value(f"{IS}enable"):
        if kind not in CORRECTIONS:
            raise ConfigError(f"{IS}type={kind}: OpenRLHF has {', '.join(CORRECTIONS)}")
        recipe.settled[f"{IS}level"], recipe.settled[f"{IS}mode"] = CORRECTIONS[kind]


def old_logprobs(recipe: Recipe, level: Any) -> Any:
    """Return where the ratio's old logprobs come from: with gspo a correction takes the ratio to the engine."""
    return "engine" if level != "off" and recipe.value("actor.policy_loss_type") == "gspo" else ABSENT


def corrections(recipe: Recipe, level: Any) -> Any:
    """Return what allows for engine and learner not agreeing."""
    is_supported = recipe.value(f"{IS}gating") == "ratio" and recipe.value("actor.policy_loss_type") != "gspo"
    if level == "off" or not is_supported:
        return None
    low, high = [0.0, *map(float, shared.listed(recipe.value(f"{IS}threshold")))][-2:]
    if level == "seq":  # the sequence decides by its geometric mean, each token weighs by itself
        gate = {"name": "mask", "level": "geometric", "low": low, "high": high, "weigh": False}
        return [gate, {"name": "decoupled"}]
    name = "truncate" if recipe.value(f"{IS}mode") == "clip" else "mask"
    return [{"name": name, "level": "token", "low": low, "high": high}]


def lengths(recipe: Recipe) -> None:
    """Write the bounds of prompt and response, and fit the microbatch."""
    prompt, whole = recipe.value("prompt_max_len"), recipe.value("data.max_len")
    if prompt is None:
        _divide(recipe, int(2048 if whole is None else whole))
    else:  # before 0.9.8 either has a bound of its own
        recipe.written["data.max_prompt_tokens"] = int(prompt)
        recipe.written["rollout.max_response_tokens"] = int(recipe.value("rollout.max_new_tokens") or 1024)
        recipe.note("prompt_max_len", "OpenRLHF cuts longer prompts, rlsys leaves them out (data.overlong)")
    shared.fit_microbatch(recipe)
    if recipe.value("train.dynamic_batch_enable") and recipe.is_given("train.max_tokens_per_gpu"):
        longest = recipe.written["data.max_prompt_tokens"] + recipe.written["rollout.max_response_tokens"]
        recipe.written["learner.microbatch_tokens"] = max(int(recipe.value("train.max_tokens_per_gpu")), longest)


def _divide(recipe: Recipe, whole: int) -> None:
    """Divide `data.max_len`, which bounds prompt and response together."""
    response = recipe.value("rollout.max_new_tokens")
    if response is None:
        response = whole // 2
        recipe.note("data.max_len", "in OpenRLHF a response may fill what its prompt leaves; in rlsys either gets half")
    if int(response) >= whole and recipe.is_given("data.max_len"):
        raise ConfigError(f"rollout.max_new_tokens={response} leaves no room for a prompt within data.max_len={whole}")
    recipe.written["data.max_prompt_tokens"] = max(whole - int(response), 1)
    recipe.note("data.max_len", "OpenRLHF cuts longer prompts, rlsys leaves them out (data.overlong)")
    recipe.written["rollout.max_response_tokens"] = int(response)


def rewards(recipe: Recipe) -> None:
    """Write a reward model, a server or a Python file, and the penalty for length."""
    remote, models = recipe.value("reward.remote_url"), recipe.value("reward.model_name_or_path")
    found: list[dict[str, Any]] = []
    for url in str(remote).split(",") if remote else []:
        is_file = url.endswith(".py")
        recipe.note("reward.remote_url", REMOTE_FUNCTION if is_file else REMOTE_SERVER)
        file, server = {"name": "openrlhf_function"}, {"name": "http", "url": url, "protocol": "openrlhf"}
        found.append(file | {"function": f"{url}:reward_func"} if is_file else server)
    if not remote:
        found = [{"name": "reward_model", "model": path} for path in str(models or "").split(",") if path]
    if not found:
        recipe.mark_unsupported(
            "reward.model_name_or_path", "no reward is named, so none is written: set rewards=[{name: ...}]"
        )
        return
    buffer = recipe.value("reward.overlong_buffer_len")
    if buffer is not None:
        bound = {"max_response_tokens": recipe.written["rollout.max_response_tokens"], "buffer_tokens": int(buffer)}
        weight = float(recipe.value("reward.overlong_penalty_factor"))
        found.append({"name": "soft_overlong_punishment", "weight": weight, **bound})
    recipe.written["rewards"] = found


def training_data(recipe: Recipe, names: Any) -> Any:
    """Return the sources, with the shares of prompts drawn from each."""
    sources = shared.named_sources(names, recipe.value("data.prompt_split"), "train")
    shares = str(recipe.value("data.prompt_probs") or "").split(",")
    if not sources:
        raise UnsupportedError("no dataset is named, so none is written: set data.train")
    recipe.written["data.eval"] = None  # which eval.dataset replaces
    if len(sources) == 1 or len(shares) != len(sources):
        return shared.only_or_all(sources)
    nodes = [source if isinstance(source, dict) else {"name": source} for source in sources]
    return [node | {"weight": float(share)} for node, share in zip(nodes, shares, strict=True)]


def held_out_data(recipe: Recipe, names: Any) -> Any:
    """Return the sources of held-out data."""
    return shared.only_or_all(shared.named_sources(names, recipe.value("eval.split"), "test"))


def critic(recipe: Recipe) -> None:
    """Write what holds for the critic as for the actor: the options of DeepSpeed and the precision."""
    if recipe.value("algo.advantage.estimator") == "gae":
        for name in ("zero_stage", "offload_optimizer", "gradient_checkpointing", "dtype"):
            recipe.written[f"critic.{name}"] = recipe.written[f"learner.{name}"]


def trackers(recipe: Recipe, folder: Any) -> list[Any]:
    """Return the trackers: TensorBoard with a folder, W&B with a key."""
    key, project, entity = (recipe.value(f"logger.wandb.{name}") for name in ("key", "project", "org"))
    names = ["tensorboard"] * bool(folder) + ["wandb"] * bool(key)
    return shared.trackers(recipe, "logger.wandb.key", names, project=project, entity=entity)
