"""Conversions that several dialects share: steps and schedules, data sources, trackers, groups, microbatches.

A step of rlsys samples `prompts_per_step` groups, trains on them in `minibatches_per_step` updates, and goes through
them `updates_per_step` times.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from rlsys.commands.importers.options import Compute, Condition, Noted, UnsupportedError
from rlsys.commands.importers.recipe import ABSENT, Recipe
from rlsys.errors import ConfigError

NEEDS_ROWS = "it needs the number of rows of the training data: import again with --num-rows N, or set {key} yourself"
NO_SCHEDULE = "rlsys has no schedule '{value}', so {key}={instead} was written"
SCHEDULES: dict[str, Any] = {
    "linear": "linear",
    "cosine": "cosine",
    "constant": "constant",
    "constant_with_warmup": "constant",
    "cosine_with_min_lr": UnsupportedError(f"{NO_SCHEDULE}, which ends at 0 and not at a minimum", "cosine"),
    "cosine_warmup_with_min_lr": UnsupportedError(f"{NO_SCHEDULE}, which ends at 0 and not at a minimum", "cosine"),
    "cosine_with_restarts": UnsupportedError(NO_SCHEDULE, "cosine"),
    "polynomial": UnsupportedError(NO_SCHEDULE, "linear"),
}
OTHER_SCHEDULE = UnsupportedError(NO_SCHEDULE, "constant")
EVERY_CHECKPOINT = "the recipe keeps every checkpoint, rlsys keeps the last checkpoint.keep"
EQUAL_REWARDS = "this estimator learns from groups of equal rewards too, so they are kept"
OTHER_DTYPE = UnsupportedError("rlsys does not train in {value}, so bfloat16 was written", "bfloat16")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def updates_per_step(recipe: Recipe) -> int:
    """Return the optimizer updates of one step."""
    passes = recipe.written.get("train.updates_per_step", 1)
    return int(recipe.written["train.minibatches_per_step"]) * int(passes)


def steps_per_epoch(recipe: Recipe) -> int:
    """Return the steps that go once over the data. Raises UnsupportedError while its rows are not known."""
    if recipe.size.num_rows is None:
        raise UnsupportedError(NEEDS_ROWS)
    return max(recipe.size.num_rows // int(recipe.written["train.prompts_per_step"]), 1)


def epochs(recipe: Recipe, count: Any) -> int:
    """Return the steps that go `count` times over the data."""
    return math.ceil(float(count) * steps_per_epoch(recipe))


def share_of_updates(recipe: Recipe, share: Any, rounded: Callable[[float], int] = math.ceil) -> int:
    """Return that share of the run's updates. Raises UnsupportedError while its steps are not known."""
    if not float(share or 0):
        return 0
    if "train.num_steps" not in recipe.written:
        raise UnsupportedError(NEEDS_ROWS)
    return rounded(float(share) * (int(recipe.written["train.num_steps"]) * updates_per_step(recipe)))


def warmup_of_steps(recipe: Recipe, steps: Any) -> int:
    """Return the updates of a warm-up that is counted in steps, where a step moves the learning rate once."""
    return int(steps) * updates_per_step(recipe)


def warmup_share_of_steps(recipe: Recipe, share: Any) -> int:
    """Return the updates of a warm-up that is a share of the steps, rounded down."""
    if not float(share or 0):
        return 0
    if "train.num_steps" not in recipe.written:
        raise UnsupportedError(NEEDS_ROWS)
    return warmup_of_steps(recipe, int(float(share) * int(recipe.written["train.num_steps"])))


def whole_steps(recipe: Recipe, updates: Any) -> Any:
    """Return the steps nearest to that many updates, at least 1; below 1 it is a share of the run's steps."""
    if 0 < float(updates) < 1:
        if "train.num_steps" not in recipe.written:
            raise UnsupportedError(NEEDS_ROWS)
        return max(round(float(updates) * int(recipe.written["train.num_steps"])), 1)
    per_step = updates_per_step(recipe)
    steps = max(round(float(updates) / per_step), 1)
    return Noted(steps, f"rounded to whole steps of {per_step} updates") if float(updates) % per_step else steps


def oversample(recipe: Recipe, prompts: Any) -> float:
    """Return how many times the prompts of a step are sampled at once."""
    return max(int(prompts) / int(recipe.written["train.prompts_per_step"]), 1.0)


def listed(value: Any) -> list[Any]:
    """Return a list as it is, a single value (as a flag gives it) as a list of it, None as no values."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def source_node(name: Any, subset: Any = None, split: Any = None, **options: Any) -> dict[str, Any]:
    """Return a data source with what is set of its subset, its split, and the options of its loader."""
    node: dict[str, Any] = {"name": str(name)}
    if subset:
        node["subset"] = str(subset[0] if isinstance(subset, list) else subset)
    if split:
        node["split"] = str(split)
    options = {key: value for key, value in options.items() if value}
    return node | ({"options": options} if options else {})


def source(name: Any, subset: Any, split: Any, default_split: str, **options: Any) -> Any:
    """Return a data source in its shortest form: the name alone where nothing else differs from the default."""
    node = source_node(name, subset, None if split == default_split else split, **options)
    return node["name"] if len(node) == 1 else node


@dataclass(frozen=True)
class Entries:
    """The keys by which a list of datasets names its data; other keys of an entry are not carried over."""

    option: str
    name: str = "path"
    subset: str = "name"
    split: str = "split"
    options: tuple[str, ...] = ()  # passed to the loader
    also: tuple[str, ...] = ()  # read elsewhere

    def sources(self, recipe: Recipe, parts: Any) -> list[dict[str, Any]]:
        """Return the source of every entry. Raises ConfigError for one that names no data."""
        read = {self.name, self.subset, self.split, *self.options, *self.also}
        keys = sorted({str(key) for part in parts if isinstance(part, Mapping) for key in part if key not in read})
        if keys:
            recipe.note(self.option, f"keys of its entries that are not carried over: {', '.join(keys)}")
        return [self._source(part) for part in parts]

    def _source(self, part: Any) -> dict[str, Any]:
        if not isinstance(part, Mapping) or not part.get(self.name):
            raise ConfigError(f"{self.option}: every entry needs `{self.name}`, and this one has none: {part!r}")
        options = {key: part.get(key) for key in self.options}
        return source_node(part[self.name], part.get(self.subset), part.get(self.split), **options)


def named_sources(text: Any, split: Any, default_split: str) -> list[Any]:
    """Return the sources named `repo` or `repo@split` and separated by commas."""
    parts = [part.partition("@") for part in str(text or "").split(",") if part]
    return [source(name, None, own_split or split, default_split) for name, _, own_split in parts]


def only_or_all(sources: list[Any]) -> Any:
    """Return the only source by itself, several as a list, none as ABSENT."""
    return sources if len(sources) > 1 else sources[0] if sources else ABSENT


def decayed(role: str) -> dict[str, Compute]:
    """Return the writes of a weight decay on all parameters, as PyTorch's AdamW has it: norms and biases too.

    The Trainer of Hugging Face and OpenRLHF leave these out, as rlsys does by default.
    """
    return {
        f"{role}.weight_decay": lambda _, value: float(value),
        f"{role}.decay_norms_and_biases": lambda _, value: bool(float(value)) or ABSENT,
    }


def trackers(recipe: Recipe, option: str, names: list[str], **wandb: Any) -> list[Any]:
    """Return trackers by name, W&B with those of its options that are set."""
    unknown = [name for name in names if name not in TRACKERS]
    if unknown:
        recipe.mark_unsupported(option, f"rlsys has no tracker {', '.join(unknown)}; the other trackers were written")
    options = {key: value for key, value in wandb.items() if value}
    known = [name for name in names if name in TRACKERS]
    return [{"name": name, **options} if name == "wandb" and options else name for name in known]


def temperature(value: Any) -> float:
    """Return the sampling temperature. Raises UnsupportedError for greedy training samples."""
    if not float(value) > 0:
        raise UnsupportedError("rlsys samples for training at a positive temperature only (its evaluation is greedy)")
    return float(value)


def whole_updates(option: str, update: Any, total: int, counted: str) -> int:
    """Return the updates of a step. Raises ConfigError where they do not divide it; `counted` says what is divided."""
    if total % int(update):
        raise ConfigError(f"{option}={update} does not divide {counted}: a step consists of whole updates")
    return total // int(update)


def zero_unless(condition: Condition) -> Compute:
    """Return the conversion that keeps a number where the condition holds, and makes it 0 elsewhere."""
    return lambda recipe, value: float(value) if condition.is_met(recipe) else 0.0


def at_least_0(steps: Any) -> int:
    """Return an interval in steps; negative ones are 0 (never) in rlsys."""
    return max(int(steps), 0)


def kept_checkpoints(count: Any) -> int:
    """Return how many checkpoints are kept. Raises UnsupportedError for all of them."""
    if count is None or int(count) <= 0:
        raise UnsupportedError(EVERY_CHECKPOINT)
    return int(count)


def fit_microbatch(recipe: Recipe) -> None:
    """Make microbatches large enough for the longest trajectory; the other projects count microbatches in rows."""
    prompt, response = recipe.written.get("data.max_prompt_tokens"), recipe.written["rollout.max_response_tokens"]
    longest = int(response) + int(prompt or 1024)
    if longest > 8192:
        has_critic = recipe.written["algorithm.advantage"]["name"] == "gae"
        for role in ("learner", "reference", "critic")[: 3 if has_critic else 2]:
            recipe.written[f"{role}.microbatch_tokens"] = longest
        guess = "" if prompt else " (prompts of at most 1024 tokens assumed)"
        recipe.remarks.append(
            f"learner.microbatch_tokens={longest}: a forward pass must hold the longest trajectory{guess}"
        )
