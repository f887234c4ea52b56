"""Low-rank adapters inside a policy, by peft: adding them, switching them off, their dropout, their folder.

The names that a policy with adapters has for engines and files are in `parameters`.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlsys.config.learner_schema import LoraConfig
from rlsys.errors import ConfigError, nearest
from rlsys.models.folder import empty_model
from rlsys.models.parameters import adapter_layers, adapter_parameters

FILE = "adapter_model.safetensors"  # peft's file of tensors in an adapter's folder


def add_adapters(hf: Any, lora: LoraConfig) -> None:
    """Put adapters beside the layers that `lora` names, in place, and freeze everything else.

    A fresh adapter changes nothing: its second matrix is zero.

    Raises:
        ConfigError: nothing matches `target_modules`, a match is no linear layer, or `modules_to_save` names a module
            that shares its matrix with another.
    """
    from peft import inject_adapter_in_model

    _refuse_tied(hf, lora)
    head, modules = hf.get_output_embeddings(), dict(hf.named_modules())
    names = {name for name, module in modules.items() if isinstance(module, nn.Linear) and module is not head}
    linear = ", ".join(sorted({name.rpartition(".")[2] for name in names}))
    try:
        inject_adapter_in_model(peft_config(lora, hf.config._name_or_path), hf)
    except ValueError as error:
        raise ConfigError(
            f"learner.lora.target_modules={lora.target_modules} matches no layer of {type(hf).__name__}; its linear "
            f"layers are: {linear} ({error})"
        ) from error
    # The output layer is called with targets (`kernels.head`), which peft's wrapper would not pass on.
    if hf.get_output_embeddings() in set(adapter_layers(hf)):
        raise ConfigError(
            "learner.lora.target_modules matches the output layer, which cannot have an adapter; leave it out, or "
            "train it whole with learner.lora.modules_to_save"
        )
    for layer in adapter_layers(hf):
        if not isinstance(layer.get_base_layer(), nn.Linear):
            kind = type(layer.get_base_layer()).__name__
            raise ConfigError(
                f"learner.lora.target_modules={lora.target_modules} matches a layer of type {kind}; only linear layers "
                f"can have adapters (for peft, all-linear includes experts): name those you want of {linear}"
            )
    set_dropout(hf, is_active=False)  # fresh modules are in train mode


def adapted_layers(model_path: str, lora: LoraConfig, *, trust_remote_code: bool) -> tuple[str, ...]:
    """Return the last parts of the names of the layers that get adapters, such as `q_proj`; no weight is loaded.

    Raises:
        ConfigError: as `add_adapters` does.
    """
    hf = empty_model(model_path, trust_remote_code=trust_remote_code)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        add_adapters(hf, lora)
    return layers_of(adapter_parameters(hf))


def layers_of(names: Iterable[str]) -> tuple[str, ...]:
    """Return the last parts of the names of the layers that an adapter's tensors belong to.

    Empty where some belong to experts: engines have these under other names.
    """
    layers = {name.split(".lora_")[0] for name in names if ".lora_" in name}
    if any(".experts." in layer for layer in layers):
        return ()
    return tuple(sorted({layer.rpartition(".")[2] for layer in layers}))


def layers_in(folder: str) -> tuple[str, ...]:
    """Return the same for an adapter's folder; empty where its tensors are in an older format."""
    from safetensors import safe_open

    path = Path(folder) / FILE
    if not path.is_file():
        return ()
    with safe_open(path, "pt") as file:
        return layers_of(file.keys())


def peft_config(lora: LoraConfig, base: str) -> Any:
    """Return peft's configuration for `lora`; `base` is the model that the adapter belongs to."""
    from peft import LoraConfig as PeftConfig
    from peft import TaskType

    alpha: Any = lora.alpha  # peft annotates int, but scales by any number
    if float(alpha).is_integer():
        alpha = int(alpha)
    return PeftConfig(
        r=lora.rank,
        lora_alpha=alpha,
        lora_dropout=lora.dropout,
        target_modules=lora.target_modules,
        modules_to_save=list(lora.modules_to_save) or None,
        use_rslora=lora.use_rslora,
        use_dora=lora.use_dora,
        task_type=TaskType.CAUSAL_LM,
        base_model_name_or_path=base,
    )


@contextlib.contextmanager
def without_adapters(hf: nn.Module) -> Iterator[None]:
    """Switch every adapter of `hf` off inside the context: the model computes what it did before they were added."""
    from peft.tuners.tuners_utils import BaseTunerLayer
    from peft.utils.other import AuxiliaryTrainingWrapper

    switched = [module for module in hf.modules() if isinstance(module, BaseTunerLayer | AuxiliaryTrainingWrapper)]
    trained = [parameter for parameter in hf.parameters() if parameter.requires_grad]
    for module in switched:
        module.enable_adapters(False)
    try:
        yield
    finally:
        for module in switched:
            module.enable_adapters(True)
        for parameter in trained:  # peft freezes the parameters of what it switches off
            parameter.requires_grad_(True)


def set_dropout(hf: nn.Module, *, is_active: bool) -> None:
    """Switch the adapters' dropout on or off. It is on only in passes that train."""
    for layer in adapter_layers(hf):
        layer.training = is_active  # DoRA looks at this flag instead of the dropout module's
        layer.lora_dropout.train(is_active)


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], config: Any) -> None:
    """Write a folder that peft and vLLM load.

    Args:
        folder: created if it does not exist.
        tensors: the adapter's tensors by the names of `adapter_parameters`.
        config: peft's configuration, as `peft_config` returns it.
    """
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE)
    config.inference_mode = True  # peft loads it frozen
    config.save_pretrained(folder)


def load_adapter(hf: nn.Module, folder: str) -> None:
    """Copy the tensors of an adapter's folder into the adapter of `hf`.

    Raises:
        ConfigError: the folder holds no tensors, or others than the model's adapter has.
    """
    from safetensors.torch import load_file

    path = Path(folder) / FILE
    if not path.is_file():
        raise ConfigError(f"model.adapter '{folder}' holds no {FILE}")
    given, own = load_file(path), adapter_parameters(hf)
    # A tensor that is silently left out would begin as a fresh one.
    different = sorted(set(given) ^ set(own)) or [n for n in own if own[n].shape != given[n].shape]
    if different:
        raise ConfigError(
            f"model.adapter '{folder}' does not fit learner.lora: {len(different)} tensors differ in name or shape, "
            f"the first is {different[0]} ({nearest(different[0], own)})"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(given[name])


def _refuse_tied(hf: Any, lora: LoraConfig) -> None:
    """Raise ConfigError when `modules_to_save` names one end of tied embeddings."""
    if not lora.modules_to_save or not getattr(hf.config, "tie_word_embeddings", False):
        return
    tied = {id(hf.get_input_embeddings()), id(hf.get_output_embeddings())}
    for name, module in hf.named_modules():
        if id(module) in tied and any(name.endswith(wanted) for wanted in lora.modules_to_save):
            raise ConfigError(
                f"learner.lora.modules_to_save names '{name}', whose matrix is both the input embedding and the output "
                "layer of this model: training one copy would untie them. Leave it out, or use a model with "
                "tie_word_embeddings=false"
            )
