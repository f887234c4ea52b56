"""Checks of low-rank adapters: the options of `learner.lora`, and an adapter given by `model.adapter`."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rlsys.algorithms.requirements import needs_critic
from rlsys.config.paths import expand
from rlsys.config.schema import Config
from rlsys.errors import ConfigError

MAX_RANK = 512  # the largest that vLLM serves
# Libraries for a quantised base: the learner's, and the engines' (vLLM keeps it in a package of its own).
QUANTIZERS = ("bitsandbytes", "vllm_bnb_plugin")
# Initialisations of peft that move a part of the model's own weights into the adapter.
CHANGE_THE_BASE = ("pissa", "olora", "corda", "loftq")


def check_lora(config: Config) -> None:
    """Raise ConfigError for options of `learner.lora` that do not fit each other or the run."""
    lora = config.learner.lora
    if config.critic.lora.rank > 0 and needs_critic(config):
        raise ConfigError(
            f"critic.lora.rank={config.critic.lora.rank}: a critic has no adapters, all of it is trained; set it to 0"
        )
    if lora.rank == 0:
        return
    if config.algorithm.refresh.every > 0:
        raise ConfigError(
            f"algorithm.refresh.every={config.algorithm.refresh.every} needs reference workers, but with "
            "learner.lora.rank > 0 the reference is the policy without its adapter: set algorithm.refresh.every=0"
        )
    targets = lora.target_modules
    names = targets if isinstance(targets, list) else [targets]
    if not names or not all(isinstance(name, str) and name for name in names):
        raise ConfigError(
            f"learner.lora.target_modules={targets}: must be all-linear, a list of names, or a regular expression for "
            "names"
        )
    if lora.quantize_base is not None:
        _check_quantized(config, f"learner.lora.quantize_base={lora.quantize_base}")


def check_quantized_model(config: Config, model_path: str) -> None:
    """Raise ConfigError for a model whose weights are stored quantised, unless it is a frozen base that can be.

    A learner trains weights in float32 or bfloat16, and sends them to engines that must hold them in the same form.
    """
    from transformers import AutoConfig

    stored = AutoConfig.from_pretrained(model_path, trust_remote_code=config.model.trust_remote_code)
    given = getattr(stored, "quantization_config", None)
    if given is None:
        return
    method = given.get("quant_method") if isinstance(given, dict) else given.quant_method
    method = str(getattr(method, "value", method))
    lora = config.learner.lora
    if method != "bitsandbytes" or lora.rank == 0:
        raise ConfigError(
            f"model.path '{model_path}' is stored quantised (config.json has a quantization_config of {method}), which "
            "cannot be trained: give the model it was made from, with learner.lora.quantize_base=nf4 if it must be "
            "small"
        )
    what = f"model.path '{model_path}' (4-bit weights)"
    _check_quantizers(config, what)
    _check_quantized(config, what)


def check_adapter(config: Config, *, training: bool) -> None:
    """Raise ConfigError for an adapter that engines cannot serve, or that differs from `learner.lora`."""
    lora = config.learner.lora
    if config.model.adapter is not None:
        _check_given(config, config.model.adapter, training=training)
    # With DoRA or whole modules the merged weights travel, and the engines have no adapter at all.
    if not lora.syncs_adapter_only:
        return
    if lora.rank > MAX_RANK:
        raise ConfigError(f"learner.lora.rank={lora.rank}: vLLM serves adapters of at most rank {MAX_RANK}")
    dtype = config.engine_dtype
    if config.cluster.num_gpus > 0 and dtype != "bfloat16":
        raise ConfigError(
            f"engines on GPUs serve adapters in half precision only, and theirs is {dtype}: set learner.dtype=bfloat16 "
            "(or rollout.dtype=bfloat16)"
        )


def check_quantizers(config: Config) -> None:
    """Raise ConfigError when `learner.lora.quantize_base` lacks its GPUs or libraries."""
    lora = config.learner.lora
    if lora.rank > 0 and lora.quantize_base is not None:
        _check_quantizers(config, f"learner.lora.quantize_base={lora.quantize_base}")


def _check_quantizers(config: Config, what: str) -> None:
    missing = [name.replace("_", "-") for name in QUANTIZERS if find_spec(name) is None]
    if config.cluster.num_gpus == 0 or missing:
        why = "cluster.num_gpus is 0" if config.cluster.num_gpus == 0 else f"pip install {' '.join(missing)}"
        raise ConfigError(f"{what} needs GPUs and bitsandbytes: {why}")


def _check_quantized(config: Config, what: str) -> None:
    if config.learner.zero_stage == 3 or not config.learner.lora.syncs_adapter_only:
        # Quantised weights can neither be divided among ranks nor merged with an adapter.
        raise ConfigError(
            f"{what} works with learner.zero_stage 0 to 2 and without learner.lora.use_dora and modules_to_save: "
            "change these, or use a base that is not quantised"
        )


def _check_given(config: Config, adapter: str, *, training: bool) -> None:
    """Raise ConfigError unless the adapter's own description agrees with `learner.lora`.

    Names and shapes alone would not show a different scale, which would train from another policy without notice.
    """
    lora = config.learner.lora
    file = Path(expand(adapter)) / "adapter_config.json"
    if not file.is_file():
        raise ConfigError(f"model.adapter '{adapter}' is not a peft folder: there is no {file}")
    given: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
    theirs = {"rank": given.get("r"), "alpha": given.get("lora_alpha"), "use_rslora": bool(given.get("use_rslora"))}
    theirs["use_dora"] = bool(given.get("use_dora"))
    # An evaluation only serves the adapter: its scale is in its own description, and the rank sizes vLLM's buffers.
    for name, value in theirs.items():
        ours = getattr(lora, name)
        if value != ours and (training or name == "rank"):
            raise ConfigError(
                f"model.adapter '{adapter}' was trained with {name}={value}, but learner.lora.{name} is {ours}: set "
                f"learner.lora.{name}={value}"
            )
    patterns = [key for key in ("alpha_pattern", "rank_pattern") if given.get(key)]
    if training and patterns:
        raise ConfigError(
            f"model.adapter '{adapter}' has {' and '.join(patterns)}, layers with a scale or rank of their own, which "
            "learner.lora cannot train: merge it into its model first (peft's merge_and_unload) and give the result as "
            "model.path"
        )
    how = str(given.get("init_lora_weights", ""))
    if how.startswith(CHANGE_THE_BASE):  # a prefix, because peft also knows `pissa_niter_16` for example
        raise ConfigError(
            f"model.adapter '{adapter}' was started with init_lora_weights={how}, which changes the model under it: "
            "convert it to a plain adapter (peft's save_pretrained with path_initial_model_for_weight_conversion)"
        )
    if not training and (given.get("use_dora") or given.get("modules_to_save")):
        raise ConfigError(
            f"model.adapter '{adapter}' has DoRA or whole modules, which vLLM does not serve: merge it into its model "
            "first (rlsys export --merge, or peft's merge_and_unload)"
        )
