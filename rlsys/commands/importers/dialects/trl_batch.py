"""TRL's batches and schedules to ours.

TRL counts completions: `per_device_train_batch_size * num_processes * gradient_accumulation_steps` of them make one
optimizer update, `generation_batch_size` of them are sampled at once, and each is used in `num_iterations` updates.
We count prompts: a step samples `prompts_per_step` groups, trains on them in `minibatches_per_step` updates, and goes
through them `updates_per_step` times.
"""

from __future__ import annotations

import math

from rlsys.commands.importers.recipe import Recipe
from rlsys.errors import ConfigError

SCHEDULES = ("linear", "cosine", "constant", "constant_with_warmup")
NEAREST_SCHEDULE = {
    "cosine_with_min_lr": "cosine",
    "cosine_warmup_with_min_lr": "cosine",
    "cosine_with_restarts": "cosine",
    "polynomial": "linear",
    "warmup_stable_decay": "constant",
    "inverse_sqrt": "constant",
    "reduce_lr_on_plateau": "constant",
    "greedy": "constant",
}
NEEDS_ROWS = "needs the number of rows of the training data: import again with --num-rows N, or set {key} yourself"


def processes(recipe: Recipe) -> int:
    """Of their trainer: the command line's, else the file's, else 1."""
    return int(recipe.size.num_processes or recipe.value("num_processes") or 1)


def batch(recipe: Recipe) -> None:
    """Raises ConfigError where TRL refuses too, and where an update would mix two generations."""
    per_device, accumulation = (
        int(recipe.value("per_device_train_batch_size")),
        recipe.value("gradient_accumulation_steps"),
    )
    forward = per_device * processes(recipe)
    update = forward * int(accumulation)
    generation = _generation_batch(recipe, forward, int(accumulation))
    group, iterations = int(recipe.value("num_generations")), int(recipe.value("num_iterations"))
    if group < 2 or generation % group:
        possible = [n for n in range(2, generation + 1) if generation % n == 0]
        raise ConfigError(
            f"num_generations={group} does not divide the generation batch of {generation} completions "
            f"(per_device_train_batch_size={per_device} * {processes(recipe)} processes * steps_per_generation="
            f"{generation // forward}); it could be {', '.join(map(str, possible)) or 'nothing'}. The number of "
            "processes is --num-processes"
        )
    if generation % update == 0:
        prompts, minibatches = generation // group, generation // update
    elif update % generation == 0 and iterations == 1:
        prompts, minibatches = update // group, 1
        recipe.note("steps_per_generation", "an update of several generations: here they are one step's")
    else:
        raise ConfigError(
            f"an update of {update} completions and a generation of {generation}, used {iterations} times: TRL would "
            "mix generations within an update, and here a step samples once. Make one a multiple of the other, with "
            "num_iterations=1 where the update is the larger one"
        )
    if minibatches > prompts:
        name = "steps_per_generation" if recipe.given("steps_per_generation") else "generation_batch_size"
        recipe.mark_unsupported(
            name,
            f"{minibatches} updates a generation of {prompts} prompts: TRL divides a prompt's completions among "
            f"updates, here they stay together; wrote train.minibatches_per_step={prompts}",
        )
        minibatches = prompts
    recipe.write("train.prompts_per_step", prompts)
    recipe.write("train.samples_per_prompt", group)
    recipe.write("train.minibatches_per_step", minibatches)
    recipe.write("train.updates_per_step", iterations)


def _generation_batch(recipe: Recipe, forward: int, accumulation: int) -> int:
    size, steps = recipe.value("generation_batch_size"), recipe.value("steps_per_generation")
    if size is not None and steps is not None:
        raise ConfigError("generation_batch_size and steps_per_generation are both set: TRL takes one of them")
    if size is None:
        return forward * int(steps or accumulation)
    if int(size) % forward:
        raise ConfigError(
            f"generation_batch_size={size} is not a multiple of per_device_train_batch_size * processes = {forward} "
            "(--num-processes)"
        )
    return int(size)


def updates_a_step(recipe: Recipe) -> int:
    """Optimizer updates that one of our steps makes."""
    return int(recipe.written["train.minibatches_per_step"]) * int(recipe.written["train.updates_per_step"])


def steps_an_epoch(recipe: Recipe) -> int | None:
    """Our steps that go once over the data; None while the number of rows is not known."""
    rows = recipe.size.num_rows
    return None if rows is None else max(rows // int(recipe.written["train.prompts_per_step"]), 1)


def steps(recipe: Recipe) -> None:
    """`max_steps` counts optimizer updates; without it `num_train_epochs` does."""
    max_steps = int(recipe.value("max_steps") or -1)
    if max_steps > 0:
        recipe.write("train.num_steps", math.ceil(max_steps / updates_a_step(recipe)))
        recipe.mark_ignored("num_train_epochs", "max_steps decides")
        return
    recipe.mark_ignored("max_steps", "not positive: num_train_epochs decides")
    epoch = steps_an_epoch(recipe)
    if epoch is None:
        recipe.mark_unsupported("num_train_epochs", NEEDS_ROWS.format(key="train.num_steps"))
        return
    recipe.write("train.num_steps", math.ceil(float(recipe.value("num_train_epochs")) * epoch))


def schedule(recipe: Recipe) -> None:
    """The learning rate's course. Warm-up counts optimizer updates on both sides."""
    name = str(recipe.value("lr_scheduler_type"))
    if name in SCHEDULES:
        recipe.write("learner.lr_schedule", "constant" if name == "constant_with_warmup" else name)
    else:
        instead = NEAREST_SCHEDULE.get(name, "constant")
        ends = ": it ends at 0, theirs at its minimum" if "min_lr" in name else ""
        recipe.write("learner.lr_schedule", instead)
        recipe.mark_unsupported(
            "lr_scheduler_type", f"there is no '{name}' here; wrote learner.lr_schedule={instead}{ends}"
        )
    if name == "constant":
        for option in ("warmup_steps", "warmup_ratio"):
            recipe.mark_ignored(option, "lr_scheduler_type=constant has no warm-up (constant_with_warmup has)")
        recipe.write("learner.warmup_steps", 0)
        return
    warmup(recipe)


def warmup(recipe: Recipe) -> None:
    """`warmup_steps` wins over `warmup_ratio`; below 1 it is a share of all updates (transformers 5)."""
    asked = float(recipe.value("warmup_steps") or 0)
    if asked >= 1:
        recipe.write("learner.warmup_steps", int(asked))
        recipe.mark_ignored("warmup_ratio", "warmup_steps decides")
        return
    name = "warmup_steps" if asked else "warmup_ratio"
    share = asked or float(recipe.value("warmup_ratio") or 0)
    if share == 0:
        recipe.write("learner.warmup_steps", 0)
    elif "train.num_steps" not in recipe.written:
        recipe.mark_unsupported(name, NEEDS_ROWS.format(key="learner.warmup_steps"))
    else:
        updates = int(recipe.written["train.num_steps"]) * updates_a_step(recipe)
        recipe.write("learner.warmup_steps", math.ceil(share * updates))


def every(recipe: Recipe, name: str, updates: float) -> int | None:
    """Optimizer updates between two saves or evaluations, in our steps; None when that cannot be told.

    Below 1 it is a share of the run.
    """
    if 0 < updates < 1:
        if "train.num_steps" not in recipe.written:
            recipe.mark_unsupported(name, NEEDS_ROWS.format(key="its step count"))
            return None
        return max(round(updates * int(recipe.written["train.num_steps"])), 1)
    a_step = updates_a_step(recipe)
    if updates % a_step:
        recipe.note(name, f"rounded to whole steps of {a_step} updates")
    return max(round(updates / a_step), 1)


def saves(recipe: Recipe) -> None:
    """Checkpoints."""
    strategy = str(recipe.value("save_strategy"))
    count: int | None = None
    if strategy == "epoch":
        count = steps_an_epoch(recipe)
        if count is None:
            recipe.mark_unsupported("save_strategy", NEEDS_ROWS.format(key="checkpoint.every"))
    elif strategy == "steps":
        count = every(recipe, "save_steps", float(recipe.value("save_steps")))
    elif strategy == "no":
        count = 0
    else:
        recipe.mark_unsupported("save_strategy", f"checkpoints are not chosen by a metric here ('{strategy}')")
    if strategy != "steps":
        recipe.mark_ignored("save_steps", f"save_strategy is '{strategy}'")
    if count is not None:
        recipe.write("checkpoint.every", count)
    if recipe.value("save_total_limit") is not None:
        recipe.write("checkpoint.keep", max(int(recipe.value("save_total_limit")), 1))
    else:
        recipe.mark_unsupported("save_total_limit", "every checkpoint is kept there; here the last checkpoint.keep are")
