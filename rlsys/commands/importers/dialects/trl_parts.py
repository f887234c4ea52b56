"""What else TRL's recipes hold: precision, LoRA, rewards, data, evaluation, trackers."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from rlsys.commands.importers.dialects.trl_batch import NEEDS_ROWS, every, steps_an_epoch
from rlsys.commands.importers.options import UnsupportedError
from rlsys.commands.importers.recipe import Recipe
from rlsys.errors import ConfigError

PEFT_DEFAULT = ["q_proj", "v_proj"]
"""What peft adapts in Qwen2, Qwen3, Llama, Mistral and Gemma when it is not told (peft.utils.constants)."""
LORA = {
    "lora_r": "rank",
    "lora_alpha": "alpha",
    "lora_dropout": "dropout",
    "lora_modules_to_save": "modules_to_save",
    "use_rslora": "use_rslora",
    "use_dora": "use_dora",
}
QUANTIZED = ("load_in_8bit", "load_in_4bit", "bnb_4bit_quant_type", "use_bnb_nested_quant", "bnb_4bit_quant_storage")
TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def precision(recipe: Recipe) -> None:
    """float32 weights under bfloat16 autocast are what bfloat16 with DeepSpeed's float32 master weights is here."""
    bf16, fp16, dtype = recipe.value("bf16"), recipe.value("fp16"), recipe.value("dtype")
    if fp16 or dtype in ("float16", "fp16"):
        recipe.mark_unsupported("fp16" if fp16 else "dtype", "no float16 here; wrote learner.dtype=bfloat16")
        recipe.write("learner.dtype", "bfloat16")
        return
    if bf16 is None and not recipe.given("bf16"):
        bf16 = recipe.default("bf16") is None  # since TRL 0.19 unset means yes
        if bf16:
            recipe.note("bf16", "unset, TRL takes bfloat16")
    if dtype == "auto":
        recipe.note("dtype", "auto is what the model was saved in; taken to be bfloat16")
    is_half = bool(bf16) or dtype in ("bfloat16", "bf16", "auto")
    recipe.write("learner.dtype", "bfloat16" if is_half else "float32")


def lora(recipe: Recipe) -> None:
    """Adapters, and the frozen weights' quantization."""
    details = [*LORA, *QUANTIZED, "lora_target_modules", "lora_target_parameters", "lora_task_type"]
    if not recipe.value("use_peft"):
        for name in details:
            recipe.mark_ignored(name, "use_peft is false")
        return
    for theirs, ours in LORA.items():
        if recipe.value(theirs) is not None:
            recipe.write(f"learner.lora.{ours}", recipe.value(theirs))
    modules = recipe.value("lora_target_modules")
    if modules is None:
        recipe.note("lora_target_modules", "unset, peft chooses by architecture; this is its choice for Qwen and Llama")
    if isinstance(modules, Sequence) and list(modules) == ["all-linear"]:
        modules = "all-linear"
    recipe.write("learner.lora.target_modules", modules or PEFT_DEFAULT)
    if recipe.value("lora_target_parameters"):
        recipe.mark_unsupported("lora_target_parameters", "adapters go to modules here: learner.lora.target_modules")
    kind = recipe.value("bnb_4bit_quant_type")
    if recipe.value("load_in_4bit") and kind == "nf4":
        recipe.write("learner.lora.quantize_base", "nf4")
    elif recipe.value("load_in_4bit"):
        recipe.mark_unsupported("bnb_4bit_quant_type", f"engines hold frozen weights as nf4, not as {kind}")
    elif recipe.value("load_in_8bit"):
        recipe.mark_unsupported("load_in_8bit", "frozen weights are held in 4 bits (nf4) or whole")
    if recipe.value("load_in_4bit") and not recipe.value("use_bnb_nested_quant"):
        recipe.note("use_bnb_nested_quant", "quantization constants are always quantized again here, as the engines do")


def outside(name: str) -> str:
    """`package.module.function` as we name outside code."""
    module, _, function = name.rpartition(".")
    return f"{module}:{function}" if module else name


def listed(value: Any) -> list[Any]:
    """A list as it is, a single value, as a flag gives it, as a list of it; null is none."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def rewards(recipe: Recipe, known: Mapping[str, dict[str, Any] | None]) -> None:
    """`reward_funcs` in order with `reward_weights`; `known` are names that their script knows, None: not ours."""
    names = [str(name) for name in listed(recipe.value("reward_funcs"))]
    nodes = [known[name] if name in known else _unlisted(name) for name in names]
    model = recipe.value("reward_model_name_or_path")
    if model:  # theirs comes first
        names, nodes = [str(model), *names], [{"name": "reward_model", "model": model}, *nodes]
    weighed = list(zip(names, nodes, _weights(recipe, names), strict=True))
    _leave_out(recipe, [(name, weight) for name, node, weight in weighed if node is None])
    found = [node | ({} if weight is None else {"weight": weight}) for _, node, weight in weighed if node is not None]
    if found:
        recipe.write("rewards", found)
        return
    recipe.mark_unsupported(
        "reward_funcs", "none is named; wrote nothing: set rewards=[{name: my_rewards.py:function}]"
    )
    recipe.mark_ignored("reward_weights", "no reward was written")


def _weights(recipe: Recipe, names: Sequence[str]) -> Sequence[float | None]:
    """One for each of their rewards, those that are not ours among them; None where the file sets none."""
    asked = recipe.value("reward_weights")
    if asked is None or not names:
        return [None] * len(names)
    weights = [float(weight) for weight in listed(asked)]
    if len(weights) != len(names):
        raise ConfigError(f"reward_weights has {len(weights)} values for {len(names)} rewards: {', '.join(names)}")
    return weights


def _leave_out(recipe: Recipe, missing: Sequence[tuple[str, float | None]]) -> None:
    if missing:
        names = ", ".join(f"'{name}'" for name, _ in missing)
        recipe.mark_unsupported("reward_funcs", f"there is no reward {names} here; write one as TRL's signature has it")
    for name, weight in missing:
        if weight is not None:
            recipe.note("reward_weights", f"{weight} of '{name}' is left out with it")


def _unlisted(name: str) -> dict[str, Any] | None:
    if re.fullmatch(r"[A-Za-z_][\w.]*\.\w+", name):
        return {"name": outside(name)}
    return {"name": "reward_model", "model": name} if "/" in name else None


def source(name: Any, subset: Any, split: Any, default_split: str) -> Any:
    """A data source, as short as it can be said."""
    node = {"name": str(name)}
    if subset is not None:
        node["subset"] = str(subset[0] if isinstance(subset, list) else subset)
    if split is not None and split != default_split:
        node["split"] = str(split)
    return node["name"] if len(node) == 1 else node


def left_out(recipe: Recipe, option: str, parts: Iterable[Any], read: Container[str]) -> None:
    """Say which keys of a list's entries were not carried over."""
    keys = sorted({str(key) for part in parts if isinstance(part, Mapping) for key in part if key not in read})
    if keys:
        recipe.note(option, f"of its entries not carried over: {', '.join(keys)}")


def data(recipe: Recipe) -> None:
    """One dataset, or a mixture of them (`datasets`)."""
    name, subset, mixture = recipe.value("dataset_name"), recipe.value("dataset_config"), recipe.value("datasets")
    splits = (recipe.value("dataset_train_split"), recipe.value("dataset_test_split"))
    is_evaluated = str(recipe.value("eval_strategy")) != "no"
    if mixture:
        recipe.write("data.train", [_part(part) for part in mixture])
        left_out(recipe, "datasets", mixture, ("path", "name", "split", "data_dir", "data_files"))
        for option in ("dataset_name", "dataset_config", "dataset_train_split"):
            recipe.mark_ignored(option, "datasets names the data")
    elif name is not None:
        recipe.write("data.train", source(name, subset, splits[0], "train"))
    else:
        recipe.mark_unsupported("dataset_name", "none is named; wrote nothing: set data.train and data.eval")
        return
    held_out = source(name, subset, splits[1], "test") if is_evaluated and not mixture else None
    recipe.write("data.eval", held_out)
    if is_evaluated and mixture:
        recipe.mark_unsupported(
            "eval_strategy", "a mixture's held-out part is not split off here: set data.eval and eval.every"
        )
    if not is_evaluated:
        recipe.mark_ignored("dataset_test_split", "eval_strategy is 'no'")


def _part(part: Any) -> Any:
    if not isinstance(part, Mapping) or not part.get("path"):
        raise ConfigError(f"datasets: each entry needs a path; this one is {part!r}")
    node = {"name": str(part["path"])}
    node |= {ours: part[theirs] for ours, theirs in (("subset", "name"), ("split", "split")) if part.get(theirs)}
    files = {key: part[key] for key in ("data_dir", "data_files") if part.get(key)}
    return node | ({"options": files} if files else {})


def evaluation(recipe: Recipe) -> None:
    """Theirs samples and reports rewards; ours is greedy, and samples beside that when asked to."""
    strategy = str(recipe.value("eval_strategy"))
    if strategy == "no" or "eval_strategy" in recipe.unsupported:
        for name in ("eval_steps", "eval_on_start", "num_generations_eval"):
            recipe.mark_ignored(name, "there is no evaluation during training")
        recipe.write("eval.every", 0)
        return
    recipe.note("eval_strategy", "evaluation is greedy here, also before and after training; eval.num_samples samples")
    if strategy == "epoch":
        count = steps_an_epoch(recipe)
        if count is None:
            recipe.mark_unsupported("eval_strategy", NEEDS_ROWS.format(key="eval.every"))
    else:
        steps = recipe.value("eval_steps") or recipe.value("logging_steps") or 10
        count = every(recipe, "eval_steps", float(steps))
    if count is not None:
        recipe.write("eval.every", count)
    if recipe.value("num_generations_eval") is not None:
        recipe.write("eval.num_samples", int(recipe.value("num_generations_eval")))


def trackers(recipe: Recipe) -> None:
    """`report_to`, with the project and entity that open-r1 adds."""
    asked = recipe.value("report_to")
    names = [asked] if isinstance(asked, str) else list(asked or [])
    if "all" in names:
        recipe.mark_unsupported(
            "report_to", "'all' is whatever is installed there; wrote nothing: name them in logging.trackers"
        )
        return
    found: list[Any] = []
    for name in [str(name) for name in names if name not in ("none", None)]:
        if name not in TRACKERS:
            recipe.mark_unsupported("report_to", f"there is no tracker '{name}' here; the others were written")
            continue
        options = {key: recipe.value(f"wandb_{key}") for key in ("project", "entity")} if name == "wandb" else {}
        options = {key: value for key, value in options.items() if value is not None}
        found.append({"name": name, **options} if options else name)
    recipe.write("logging.trackers", found)


def zero_stage(value: Any) -> int:
    """The stage that a DeepSpeed configuration, or the name of its file, says. Raises UnsupportedError."""
    if isinstance(value, Mapping):
        return int(value.get("zero_optimization", {}).get("stage", 0))
    if found := re.search(r"(?:zero|stage|z)_?([0-3])", str(value).lower()):
        return int(found[1])
    raise UnsupportedError("the file's name does not say the stage: set learner.zero_stage")


def room(recipe: Recipe) -> None:
    """A microbatch must hold the longest trajectory; theirs are counted in rows."""
    prompt, response = recipe.written.get("data.max_prompt_tokens"), recipe.written["rollout.max_response_tokens"]
    longest = int(response) + int(prompt or 1024)
    if longest > 8192:
        has_critic = recipe.written["algorithm.advantage"]["name"] == "gae"
        for role in ("learner", "reference", "critic")[: 3 if has_critic else 2]:
            recipe.write(f"{role}.microbatch_tokens", longest)
        guess = "" if prompt else " (prompts of at most 1024 tokens assumed)"
        recipe.remark(f"learner.microbatch_tokens={longest}: a forward must hold the longest trajectory{guess}")
