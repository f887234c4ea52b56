"""What else TRL's recipes hold: precision, LoRA, rewards, data, evaluation, trackers."""

from __future__ import annotations

import re
from collections.abc import Container, Iterable, Mapping, Sequence
from typing import Any

from rlsys.commands.importers.draft import Draft
from rlsys.commands.importers.options import NotSupportedError
from rlsys.commands.importers.trl_batch import NEEDS_ROWS, every, steps_an_epoch
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


def precision(draft: Draft) -> None:
    """float32 weights under bfloat16 autocast are what bfloat16 with DeepSpeed's float32 master weights is here."""
    bf16, fp16, dtype = draft.value("bf16"), draft.value("fp16"), draft.value("dtype")
    if fp16 or dtype in ("float16", "fp16"):
        draft.refuse("fp16" if fp16 else "dtype", "no float16 here; wrote learner.dtype=bfloat16")
        draft.write("learner.dtype", "bfloat16")
        return
    if bf16 is None and not draft.given("bf16"):
        bf16 = draft.default("bf16") is None  # since TRL 0.19 unset means yes
        if bf16:
            draft.note("bf16", "unset, TRL takes bfloat16")
    if dtype == "auto":
        draft.note("dtype", "auto is what the model was saved in; taken to be bfloat16")
    is_half = bool(bf16) or dtype in ("bfloat16", "bf16", "auto")
    draft.write("learner.dtype", "bfloat16" if is_half else "float32")


def lora(draft: Draft) -> None:
    """Adapters, and the frozen weights' quantization."""
    details = [*LORA, *QUANTIZED, "lora_target_modules", "lora_target_parameters", "lora_task_type"]
    if not draft.value("use_peft"):
        for name in details:
            draft.moot(name, "use_peft is false")
        return
    for theirs, ours in LORA.items():
        if draft.value(theirs) is not None:
            draft.write(f"learner.lora.{ours}", draft.value(theirs))
    modules = draft.value("lora_target_modules")
    if modules is None:
        draft.note("lora_target_modules", "unset, peft chooses by architecture; this is its choice for Qwen and Llama")
    if isinstance(modules, Sequence) and list(modules) == ["all-linear"]:
        modules = "all-linear"
    draft.write("learner.lora.target_modules", modules or PEFT_DEFAULT)
    if draft.value("lora_target_parameters"):
        draft.refuse("lora_target_parameters", "adapters go to modules here: learner.lora.target_modules")
    kind = draft.value("bnb_4bit_quant_type")
    if draft.value("load_in_4bit") and kind == "nf4":
        draft.write("learner.lora.quantize_base", "nf4")
    elif draft.value("load_in_4bit"):
        draft.refuse("bnb_4bit_quant_type", f"engines hold frozen weights as nf4, not as {kind}")
    elif draft.value("load_in_8bit"):
        draft.refuse("load_in_8bit", "frozen weights are held in 4 bits (nf4) or whole")
    if draft.value("load_in_4bit") and not draft.value("use_bnb_nested_quant"):
        draft.note("use_bnb_nested_quant", "quantization constants are always quantized again here, as the engines do")


def outside(name: str) -> str:
    """`package.module.function` as we name outside code."""
    module, _, function = name.rpartition(".")
    return f"{module}:{function}" if module else name


def listed(value: Any) -> list[Any]:
    """A list as it is, a single value, as a flag gives it, as a list of it; null is none."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def rewards(draft: Draft, known: Mapping[str, dict[str, Any] | None]) -> None:
    """`reward_funcs` in order with `reward_weights`; `known` are names that their script knows, None: not ours."""
    names = [str(name) for name in listed(draft.value("reward_funcs"))]
    nodes = [known[name] if name in known else _unlisted(name) for name in names]
    model = draft.value("reward_model_name_or_path")
    if model:  # theirs comes first
        names, nodes = [str(model), *names], [{"name": "reward_model", "model": model}, *nodes]
    weighed = list(zip(names, nodes, _weights(draft, names), strict=True))
    _leave_out(draft, [(name, weight) for name, node, weight in weighed if node is None])
    found = [node | ({} if weight is None else {"weight": weight}) for _, node, weight in weighed if node is not None]
    if found:
        draft.write("rewards", found)
        return
    draft.refuse("reward_funcs", "none is named; wrote nothing: set rewards=[{name: my_rewards.py:function}]")
    draft.moot("reward_weights", "no reward was written")


def _weights(draft: Draft, names: Sequence[str]) -> Sequence[float | None]:
    """One for each of their rewards, those that are not ours among them; None where the file sets none."""
    asked = draft.value("reward_weights")
    if asked is None or not names:
        return [None] * len(names)
    weights = [float(weight) for weight in listed(asked)]
    if len(weights) != len(names):
        raise ConfigError(f"reward_weights has {len(weights)} values for {len(names)} rewards: {', '.join(names)}")
    return weights


def _leave_out(draft: Draft, missing: Sequence[tuple[str, float | None]]) -> None:
    if missing:
        names = ", ".join(f"'{name}'" for name, _ in missing)
        draft.refuse("reward_funcs", f"there is no reward {names} here; write one as TRL's signature has it")
    for name, weight in missing:
        if weight is not None:
            draft.note("reward_weights", f"{weight} of '{name}' is left out with it")


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


def left_out(draft: Draft, option: str, parts: Iterable[Any], read: Container[str]) -> None:
    """Say which keys of a list's entries were not carried over."""
    keys = sorted({str(key) for part in parts if isinstance(part, Mapping) for key in part if key not in read})
    if keys:
        draft.note(option, f"of its entries not carried over: {', '.join(keys)}")


def data(draft: Draft) -> None:
    """One dataset, or a mixture of them (`datasets`)."""
    name, subset, mixture = draft.value("dataset_name"), draft.value("dataset_config"), draft.value("datasets")
    splits = (draft.value("dataset_train_split"), draft.value("dataset_test_split"))
    is_evaluated = str(draft.value("eval_strategy")) != "no"
    if mixture:
        draft.write("data.train", [_part(part) for part in mixture])
        left_out(draft, "datasets", mixture, ("path", "name", "split", "data_dir", "data_files"))
        for option in ("dataset_name", "dataset_config", "dataset_train_split"):
            draft.moot(option, "datasets names the data")
    elif name is not None:
        draft.write("data.train", source(name, subset, splits[0], "train"))
    else:
        draft.refuse("dataset_name", "none is named; wrote nothing: set data.train and data.eval")
        return
    held_out = source(name, subset, splits[1], "test") if is_evaluated and not mixture else None
    draft.write("data.eval", held_out)
    if is_evaluated and mixture:
        draft.refuse("eval_strategy", "a mixture's held-out part is not split off here: set data.eval and eval.every")
    if not is_evaluated:
        draft.moot("dataset_test_split", "eval_strategy is 'no'")


def _part(part: Any) -> Any:
    if not isinstance(part, Mapping) or not part.get("path"):
        raise ConfigError(f"datasets: each entry needs a path; this one is {part!r}")
    node = {"name": str(part["path"])}
    node |= {ours: part[theirs] for ours, theirs in (("subset", "name"), ("split", "split")) if part.get(theirs)}
    files = {key: part[key] for key in ("data_dir", "data_files") if part.get(key)}
    return node | ({"options": files} if files else {})


def evaluation(draft: Draft) -> None:
    """Theirs samples and reports rewards; ours is greedy, and samples beside that when asked to."""
    strategy = str(draft.value("eval_strategy"))
    if strategy == "no" or "eval_strategy" in draft.refusals:
        for name in ("eval_steps", "eval_on_start", "num_generations_eval"):
            draft.moot(name, "there is no evaluation during training")
        draft.write("eval.every", 0)
        return
    draft.note("eval_strategy", "evaluation is greedy here, also before and after training; eval.num_samples samples")
    if strategy == "epoch":
        count = steps_an_epoch(draft)
        if count is None:
            draft.refuse("eval_strategy", NEEDS_ROWS.format(key="eval.every"))
    else:
        steps = draft.value("eval_steps") or draft.value("logging_steps") or 10
        count = every(draft, "eval_steps", float(steps))
    if count is not None:
        draft.write("eval.every", count)
    if draft.value("num_generations_eval") is not None:
        draft.write("eval.num_samples", int(draft.value("num_generations_eval")))


def trackers(draft: Draft) -> None:
    """`report_to`, with the project and entity that open-r1 adds."""
    asked = draft.value("report_to")
    names = [asked] if isinstance(asked, str) else list(asked or [])
    if "all" in names:
        draft.refuse("report_to", "'all' is whatever is installed there; wrote nothing: name them in logging.trackers")
        return
    found: list[Any] = []
    for name in [str(name) for name in names if name not in ("none", None)]:
        if name not in TRACKERS:
            draft.refuse("report_to", f"there is no tracker '{name}' here; the others were written")
            continue
        options = {key: draft.value(f"wandb_{key}") for key in ("project", "entity")} if name == "wandb" else {}
        options = {key: value for key, value in options.items() if value is not None}
        found.append({"name": name, **options} if options else name)
    draft.write("logging.trackers", found)


def zero_stage(value: Any) -> int:
    """The stage that a DeepSpeed configuration, or the name of its file, says. Raises NotSupportedError."""
    if isinstance(value, Mapping):
        return int(value.get("zero_optimization", {}).get("stage", 0))
    if found := re.search(r"(?:zero|stage|z)_?([0-3])", str(value).lower()):
        return int(found[1])
    raise NotSupportedError("the file's name does not say the stage: set learner.zero_stage")


def room(draft: Draft) -> None:
    """A microbatch must hold the longest trajectory; theirs are counted in rows."""
    prompt, response = draft.written.get("data.max_prompt_tokens"), draft.written["rollout.max_response_tokens"]
    longest = int(response) + int(prompt or 1024)
    if longest > 8192:
        has_critic = draft.written["algorithm.advantage"]["name"] == "gae"
        for role in ("learner", "reference", "critic")[: 3 if has_critic else 2]:
            draft.write(f"{role}.microbatch_tokens", longest)
        guess = "" if prompt else " (prompts of at most 1024 tokens assumed)"
        draft.remark(f"learner.microbatch_tokens={longest}: a forward must hold the longest trajectory{guess}")
