"""What can be refused of low-rank adapters before Ray starts."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlsys.algorithms.requirements import needs_critic
from rlsys.config.bounds import one_of
from rlsys.config.schema import Config
from rlsys.errors import ConfigError

MAX_RANK = 512
"""That engines serve."""
QUANTIZERS = ("bitsandbytes", "vllm_bnb_plugin")
"""The learner's, and the engines': vLLM keeps it outside."""


def check_lora(config: Config) -> None:
    """Raise ConfigError for options of `learner.lora` that do not fit each other or the run."""
    lora = config.learner.lora
    if config.critic.lora.rank > 0 and needs_critic(config):
        raise ConfigError("critic.lora.rank: a critic has no adapters; it is trained whole")
    if lora.rank == 0:
        return
    if not 0 <= lora.dropout < 1:
        raise ConfigError(f"learner.lora.dropout={lora.dropout}: a share of the input, at least 0 and below 1")
    if config.algorithm.refresh.every > 0:
        raise ConfigError(
            "algorithm.refresh.every > 0 needs a reference of its own: with learner.lora.rank > 0 the reference is the "
            "policy without its adapter"
        )
    if lora.quantize_base is not None:
        _check_quantized(config)


CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")
"""peft's ways of beginning an adapter that take a part out of the model's own weights."""


def check_adapter(config: Config, *, training: bool) -> None:
    """Raise ConfigError for an adapter that engines cannot serve, or that is another than `learner.lora` describes."""
    lora = config.learner.lora
    if config.model.adapter is not None:
        _check_given(config, config.model.adapter, training=training)
    if not config.learner.lora.syncs_adapter_only:
        return
    if lora.rank > MAX_RANK:
        raise ConfigError(f"learner.lora.rank={lora.rank}: engines serve adapters of at most rank {MAX_RANK}")
    dtype = config.rollout.dtype or config.learner.dtype
    if config.cluster.num_gpus > 0 and dtype != "bfloat16":
        raise ConfigError(
            f"engines on GPUs serve adapters in half precision only, theirs is {dtype}: set learner.dtype=bfloat16 (or "
            "rollout.dtype=bfloat16)"
        )


def _check_quantized(config: Config) -> None:
    lora = config.learner.lora
    one_of("learner.lora.quantize_base", str(lora.quantize_base), ("nf4",))
    missing = [name.replace("_", "-") for name in QUANTIZERS if find_spec(name) is None]
    if config.cluster.num_gpus == 0 or missing:
        why = "cluster.num_gpus is 0" if config.cluster.num_gpus == 0 else f"pip install {' '.join(missing)}"
        raise ConfigError(f"learner.lora.quantize_base={lora.quantize_base} works on GPUs through bitsandbytes: {why}")
    if config.learner.zero_stage == 3 or not config.learner.lora.syncs_adapter_only:
        raise ConfigError(
            "learner.lora.quantize_base goes with learner.zero_stage 0 to 2, without use_dora and modules_to_save: "
            "quantised weights can neither be divided nor merged"
        )


def _check_given(config: Config, adapter: str, *, training: bool) -> None:
    """The adapter of `model.adapter` against `learner.lora`: names and shapes would not tell another scale."""
    lora = config.learner.lora
    file = Path(adapter).expanduser() / "adapter_config.json"
    if not file.is_file():
        raise ConfigError(f"model.adapter '{adapter}' is no peft folder: it has no adapter_config.json")
    given: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    theirs = {"rank": given.get("r"), "alpha": given.get("lora_alpha"), "use_rslora": bool(given.get("use_rslora"))}
    theirs["use_dora"] = bool(given.get("use_dora"))
    for name, value in theirs.items():
        ours = getattr(lora, name)
        if value != ours and (training or name == "rank"):
            raise ConfigError(
                f"model.adapter '{adapter}' was trained with {name}={value}, learner.lora.{name} is {ours}: give the "
                "same"
            )
    patterns = [key for key in ("alpha_pattern", "rank_pattern") if given.get(key)]
    if training and patterns:
        raise ConfigError(
            f"model.adapter '{adapter}' has {' and '.join(patterns)}, layers with a scale or rank of their own, which "
            "learner.lora cannot train: merge it into its model first (peft's merge_and_unload) and give that as "
            "model.path"
        )
    how = str(given.get("init_lora_weights", ""))
    if how.startswith(CHANGE_THE_BASE):
        raise ConfigError(
            f"model.adapter '{adapter}' was begun with init_lora_weights={how}, which changes the model under it: "
            "convert it to a plain adapter (peft's save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if not training and (given.get("use_dora") or given.get("modules_to_save")):
        raise ConfigError(
            f"model.adapter '{adapter}' has DoRA or whole modules, which vLLM does not serve: merge it into its model "
            "first (rlsys export --merge, or peft's merge_and_unload)"
        )
