"""Rules that TRL's table cannot express: its batches, its precision, rewards and data. open-r1 and axolotl share it.

TRL counts completions: `per_device_train_batch_size * num_processes * gradient_accumulation_steps` of them make one
optimizer update, `generation_batch_size` of them are sampled at once, and each is used in `num_iterations` updates.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from rlsys.commands.importers.dialects import shared
from rlsys.commands.importers.options import UnsupportedError
from rlsys.commands.importers.recipe import ABSENT, Recipe
from rlsys.errors import ConfigError

CLIPPED = ("grpo", "bnpo", "dr_grpo", "dapo", "luspo")  # loss types with PPO's clipped ratio
AGGREGATIONS: dict[str, dict[str, Any]] = {
    "grpo": {"name": "sequence_mean"},
    "sapo": {"name": "sequence_mean"},
    "bnpo": {"name": "local_token_mean"},
    "dr_grpo": {"name": "constant_length"},
    "luspo": {"name": "constant_length", "length": 1},  # the sum over a response's tokens
}
# peft's own choice for Qwen2, Qwen3, Llama, Mistral and Gemma (peft.utils.constants)
PEFT_DEFAULT = ["q_proj", "v_proj"]
MODES: dict[str, dict[str, Any]] = {
    f"{level}_{name}": {"name": name, "level": level}
    for level in ("token", "sequence")
    for name in ("mask", "truncate")
}
MIXTURE = shared.Entries("datasets", options=("data_dir", "data_files"))


def settle(recipe: Recipe) -> None:
    """Turn evaluation off where it would need the held-out part of a mixture."""
    if recipe.value("datasets") and recipe.value("eval_strategy") != "no":
        reason = "rlsys does not split off the held-out part of a mixture: set data.eval and eval.every"
        recipe.mark_unsupported("eval_strategy", reason)
        recipe.settled["eval_strategy"] = "no"


def prompts_per_step(recipe: Recipe, per_device: Any) -> int:
    """Write the batch in prompts. Raises ConfigError where TRL does, and where an update would mix two generations."""
    processes = int(recipe.size.num_processes or recipe.value("num_processes") or 1)
    if recipe.size.num_processes is None and recipe.value("num_processes") is None:
        recipe.remarks.append("one process of the trainer is assumed, as the recipe does not say: give --num-processes")
    forward = int(per_device) * processes
    update = forward * int(recipe.value("gradient_accumulation_steps"))
    generation = _generation_batch(recipe, forward)
    group, iterations = int(recipe.value("num_generations")), int(recipe.value("num_iterations"))
    if group < 2 or generation % group:
        possible = [n for n in range(2, generation + 1) if generation % n == 0]
        raise ConfigError(
            f"num_generations={group} does not divide the generation batch of {generation} completions "
            f"(per_device_train_batch_size={per_device} * {processes} processes * steps_per_generation="
            f"{generation // forward}); it could be {', '.join(map(str, possible)) or 'nothing'}. The number of "
            "processes is --num-processes"
        )
    prompts, minibatches = generation // group, generation // update
    if generation % update and (update % generation or iterations > 1):
        raise ConfigError(
            f"an update of {update} completions and a generation of {generation}, used {iterations} times: TRL would "
            "mix generations within an update, and a step of rlsys samples once. Make one a multiple of the other, "
            "with num_iterations=1 where the update is the larger one"
        )
    if generation % update:
        prompts, minibatches = update // group, 1
        recipe.note("steps_per_generation", "an update of several generations is one step of rlsys")
    if minibatches > prompts:
        size = "steps_per_generation" if recipe.is_given("steps_per_generation") else "generation_batch_size"
        recipe.mark_unsupported(
            size,
            f"{minibatches} updates per generation of {prompts} prompts: TRL divides the completions of a prompt among "
            f"updates, rlsys keeps them together, so train.minibatches_per_step={prompts} was written",
        )
    recipe.written["train.minibatches_per_step"] = min(minibatches, prompts)
    return prompts


def _generation_batch(recipe: Recipe, forward: int) -> int:
    size, steps = recipe.value("generation_batch_size"), recipe.value("steps_per_generation")
    if size is not None and steps is not None:
        raise ConfigError("generation_batch_size and steps_per_generation are both set: TRL takes one of them")
    if size is None:
        return forward * int(steps or recipe.value("gradient_accumulation_steps"))
    if int(size) % forward:
        raise ConfigError(
            f"generation_batch_size={size} is not a multiple of per_device_train_batch_size * processes = {forward} "
            "(--num-processes)"
        )
    return int(size)


def dtype(recipe: Recipe, bf16: Any) -> str:
    """Return the learner's precision.

    TRL's float32 weights under bfloat16 autocast are what bfloat16 with DeepSpeed's float32 master weights is here.
    """
    is_half = recipe.defaults["bf16"] is None if bf16 is None else bf16  # since TRL 0.19 unset means yes
    return "bfloat16" if is_half or recipe.value("dtype") in ("bfloat16", "bf16", "auto") else "float32"


def policy_loss(recipe: Recipe, loss: Any) -> str:
    """Return the loss function of a loss type: with a ratio per response it is GSPO."""
    if loss in ("cispo", "sapo"):
        return str(loss)
    if loss not in CLIPPED:
        raise UnsupportedError("rlsys has no loss '{value}', so ppo_clip with token_mean was written", "ppo_clip")
    return "gspo" if recipe.value("importance_sampling_level") == "sequence" else "ppo_clip"


def aggregation(recipe: Recipe, loss: Any) -> dict[str, Any]:
    """Return how a loss type averages over tokens."""
    node: dict[str, Any] = AGGREGATIONS.get(loss, {"name": "token_mean"})
    return node | {"length": recipe.value("max_completion_length")} if loss == "dr_grpo" else node


def lower_bound(recipe: Recipe, epsilon: Any) -> float:
    """Return the lower bound of the ratio, which bounds cispo from above where it has no other bound."""
    if recipe.value("loss_type") == "cispo":
        recipe.note("epsilon", f"cispo's bound epsilon_high is not set and defaults to epsilon, {float(epsilon)}")
    return float(epsilon)


def correction(recipe: Recipe, mode: Any) -> list[dict[str, Any]]:
    """Return what allows for the engine and the trainer not agreeing."""
    high, low = (recipe.value(f"vllm_importance_sampling_clip_{bound}") for bound in ("max", "min"))
    bounds = {"high": 1e30 if high is None else float(high)} | ({} if low is None else {"low": float(low)})
    if mode not in MODES:
        raise UnsupportedError(
            "rlsys has no mode '{value}', so a mask by sequence was written", [MODES["sequence_mask"] | bounds]
        )
    return [MODES[mode] | bounds]


def off_policy_mask(recipe: Recipe, threshold: Any) -> list[dict[str, Any]]:
    """Return the corrections with the mask of sequences that are too far off the policy."""
    return [*(recipe.written["algorithm.corrections"] or ()), {"name": "opsm", "threshold": float(threshold)}]


def target_modules(modules: Any) -> Any:
    """Return the modules that get adapters."""
    return "all-linear" if modules == ["all-linear"] else modules or PEFT_DEFAULT


def zero_stage(value: Any) -> int:
    """Return the stage of a DeepSpeed configuration, or the one in the name of its file."""
    if isinstance(value, Mapping):
        return int(value.get("zero_optimization", {}).get("stage", 0))
    if found := re.search(r"(?:zero|stage|z)_?([0-3])", str(value).lower()):
        return int(found[1])
    raise UnsupportedError("the file's name does not contain the ZeRO stage: set learner.zero_stage")


def memory_share(recipe: Recipe, share: Any) -> Any:
    """Return the engine's share of a GPU; the default counts where TRL starts the engine, beside the trainer."""
    is_beside = recipe.value("use_vllm") and recipe.value("vllm_mode") == "colocate"
    return float(share) if is_beside or recipe.is_given("vllm_gpu_memory_utilization") else ABSENT


def rewards(recipe: Recipe, known: Mapping[str, dict[str, Any] | None]) -> None:
    """Write `reward_funcs` with `reward_weights`; `known`: the names of their script, None where rlsys has none."""
    names = [str(name) for name in shared.listed(recipe.value("reward_funcs"))]
    nodes = [known[name] if name in known else _outside_reward(name) for name in names]
    model = recipe.value("reward_model_name_or_path")
    if model:  # theirs comes first
        names, nodes = [str(model), *names], [{"name": "reward_model", "model": model}, *nodes]
    weights = shared.listed(recipe.value("reward_weights")) if names else []
    if weights and len(weights) != len(names):
        raise ConfigError(f"reward_weights has {len(weights)} values for {len(names)} rewards: {', '.join(names)}")
    options = [{"weight": float(weight)} for weight in weights] or [{}] * len(names)
    missing = [(name, weight) for name, node, weight in zip(names, nodes, options, strict=True) if node is None]
    if missing:
        listed = ", ".join(f"'{name}'" for name, _ in missing)
        recipe.mark_unsupported("reward_funcs", f"rlsys has no reward {listed}: write one with TRL's signature")
    for name, weight in missing if weights else ():
        recipe.note("reward_weights", f"the weight {weight['weight']} of '{name}' is left out with it")
    found = [node | weight for node, weight in zip(nodes, options, strict=True) if node is not None]
    if found:
        recipe.written["rewards"] = found
        return
    recipe.mark_unsupported(
        "reward_funcs", "no reward is named, so none is written: set rewards=[{name: my_rewards.py:function}]"
    )
    recipe.mark_ignored("reward_weights", "no reward was written")


def _outside_reward(name: str) -> dict[str, Any] | None:
    """Return `package.module.function` as rlsys names outside code, and a name with a slash as a reward model."""
    if re.fullmatch(r"[A-Za-z_][\w.]*\.\w+", name):
        module, _, function = name.rpartition(".")
        return {"name": f"{module}:{function}"}
    return {"name": "reward_model", "model": name} if "/" in name else None


def training_data(recipe: Recipe, name: Any) -> Any:
    """Return the source of the training data."""
    if name is None:
        raise UnsupportedError("no dataset is named, so none is written: set data.train and data.eval")
    return shared.source(name, recipe.value("dataset_config"), recipe.value("dataset_train_split"), "train")


def held_out_data(recipe: Recipe, name: Any) -> Any:
    """Return the source of the held-out data, None where nothing is evaluated."""
    if recipe.value("eval_strategy") == "no":
        return None
    return shared.source(name, recipe.value("dataset_config"), recipe.value("dataset_test_split"), "test")


def eval_strategy(recipe: Recipe, strategy: Any) -> Any:
    """Return the steps between two evaluations where the strategy alone decides them."""
    if strategy not in ("no", "steps", "epoch"):
        raise ConfigError(f"eval_strategy={strategy!r}: TRL has no, steps and epoch")
    if strategy == "no":
        return 0
    # TRL's evaluation samples, that of rlsys is greedy, and samples beside that when asked to.
    recipe.note(
        "eval_strategy", "rlsys evaluates greedily, also before and after training; eval.num_samples adds samples"
    )
    return shared.steps_per_epoch(recipe) if strategy == "epoch" else ABSENT


def save_strategy(recipe: Recipe, strategy: Any) -> Any:
    """Return the steps between two checkpoints where the strategy alone decides them."""
    if strategy not in ("no", "steps", "epoch", "best"):
        raise ConfigError(f"save_strategy={strategy!r}: TRL has no, steps, epoch and best")
    if strategy in ("no", "steps"):
        return 0 if strategy == "no" else ABSENT
    if strategy == "best":
        raise UnsupportedError("checkpoint.keep_best=eval/... saves the best by a metric of rlsys's own ('{value}')")
    return shared.steps_per_epoch(recipe)


def trackers(recipe: Recipe, asked: Any) -> list[Any]:
    """Return the trackers of `report_to`, with the project and entity that open-r1 and axolotl add."""
    names = [str(name) for name in shared.listed(asked) if name != "none"]
    if "all" in names:
        raise UnsupportedError(
            "'all' means every tracker that is installed, so none is written: name them in logging.trackers"
        )
    wandb = {key: recipe.value(f"wandb_{key}") for key in ("project", "entity")}
    return shared.trackers(recipe, "report_to", names, **wandb)
