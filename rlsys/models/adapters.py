"""Low-rank adapters inside a policy (peft), and what a policy with adapters is to the outside."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from rlsys.config.schema import LoraConfig
from rlsys.errors import ConfigError, nearest

NAME = "default"
"""What peft calls the only adapter."""
PREFIX = "base_model.model."
"""Before every name in an adapter's file."""
FILE = "adapter_model.safetensors"


@dataclass(frozen=True)
class Wire:
    """One parameter of the model as others know it: `read()` gives it once `sources` are whole."""

    name: str
    shape: tuple[int, ...]
    sources: Sequence[nn.Parameter]
    read: Callable[[], torch.Tensor]


def add_adapters(hf: Any, lora: LoraConfig) -> None:
    """Put adapters beside the layers that `lora` names, in place, and freeze everything else.

    A fresh adapter changes nothing: its second matrix is zero. Raises ConfigError when nothing matches, or a module
    that the model shares with another is to be trained alone.
    """
    from peft import inject_adapter_in_model

    _refuse_tied(hf, lora)
    try:
        inject_adapter_in_model(peft_config(lora, hf.config._name_or_path), hf)
    except ValueError as error:
        named = hf.named_modules()
        linear = sorted({name.rpartition(".")[2] for name, module in named if isinstance(module, nn.Linear)})
        raise ConfigError(
            f"learner.lora.target_modules={lora.target_modules} names nothing in {type(hf).__name__}; its linear "
            f"layers: {', '.join(linear)} ({error})"
        ) from error
    if hf.get_output_embeddings() in set(layers(hf)):
        raise ConfigError("learner.lora.target_modules: the output layer cannot have an adapter; use modules_to_save")
    for layer in layers(hf):
        if not isinstance(layer.get_base_layer(), nn.Linear):
            kind = type(layer.get_base_layer()).__name__
            raise ConfigError(f"learner.lora.target_modules: adapters belong to linear layers, not to a {kind}")
    set_dropout(hf, is_active=False)


def peft_config(lora: LoraConfig, base: str) -> Any:
    """The same in peft's words; `base` is the model that the adapter belongs to."""
    from peft import LoraConfig as PeftConfig
    from peft import TaskType

    alpha: Any = lora.alpha  # peft says int, and scales by any number
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


def layers(hf: nn.Module) -> list[Any]:
    """Every layer with an adapter."""
    if not any(".lora_" in name for name, _ in hf.named_parameters()):
        return []  # most runs never need peft
    from peft.tuners.lora import LoraLayer

    return [module for module in hf.modules() if isinstance(module, LoraLayer)]


@contextlib.contextmanager
def without_adapters(hf: nn.Module) -> Iterator[None]:
    """The model as it was before adapters, for as long as the context lasts."""
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
        for parameter in trained:  # peft freezes what it switches off
            parameter.requires_grad_(True)


def set_dropout(hf: nn.Module, *, is_active: bool) -> None:
    """Whether adapters drop parts of their input: only in passes that train."""
    for layer in layers(hf):
        layer.training = is_active  # what DoRA goes by
        layer.lora_dropout.train(is_active)


def wires(hf: nn.Module) -> list[Wire]:
    """Every parameter under the name that the model without adapters has for it; adapters are added to what they
    adapt."""
    owners = {id(layer.get_base_layer().weight): layer for layer in layers(hf)}
    found = []
    for name, parameter in hf.named_parameters():
        shape = tuple(getattr(parameter, "ds_shape", parameter.shape))
        if ".lora_" in name or ".original_module." in name:
            continue
        plain = name.replace(".base_layer.", ".").replace(f".modules_to_save.{NAME}.", ".")
        layer = owners.get(id(parameter))
        if layer is None:
            found.append(Wire(plain, shape, [parameter], parameter.detach))
        else:
            sources = [parameter, *(p for n, p in layer.named_parameters() if n.startswith("lora_"))]
            found.append(Wire(plain, shape, sources, _Merged(layer)))
    return found


class _Merged:
    """A layer's weight with its adapter's part."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer

    @torch.no_grad()
    def __call__(self) -> torch.Tensor:
        layer = self._layer
        base = layer.get_base_layer().weight
        merged = base.float() + layer.get_delta_weight(NAME).float()
        if layer.use_dora.get(NAME):  # its direction, at the length that was learned (arXiv:2402.09353, equation 5)
            lengths = layer.lora_magnitude_vector[NAME].weight.float() / merged.norm(dim=1)
            merged = lengths[:, None] * merged
        return merged.to(base.dtype)


def adapter_parameters(hf: nn.Module) -> dict[str, nn.Parameter]:
    """What the adapter consists of, by the names that its file has."""
    found = {}
    for name, parameter in hf.named_parameters():
        if ".lora_magnitude_vector." in name:
            found[PREFIX + name.removesuffix(f".{NAME}.weight")] = parameter
        elif ".lora_" in name:
            found[PREFIX + name.replace(f".{NAME}.", ".")] = parameter
        elif f".modules_to_save.{NAME}." in name:
            found[PREFIX + name.replace(f".modules_to_save.{NAME}.", ".")] = parameter
    return found


def write_adapter(folder: Path, tensors: dict[str, torch.Tensor], config: Any) -> None:
    """A folder that peft and vLLM load; `config` is peft's."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / FILE)
    config.inference_mode = True
    config.save_pretrained(folder)


def load_adapter(hf: nn.Module, folder: str) -> None:
    """Give a model's adapter the values of a folder. Raises ConfigError when the two do not fit."""
    from safetensors.torch import load_file

    path = Path(folder) / FILE
    if not path.is_file():
        raise ConfigError(f"model.adapter '{folder}' holds no {FILE}")
    given, own = load_file(path), adapter_parameters(hf)
    unlike = sorted(set(given) ^ set(own)) or [n for n in own if own[n].shape != given[n].shape]
    if unlike:
        raise ConfigError(
            f"model.adapter '{folder}' does not fit learner.lora: {len(unlike)} of its tensors are others, the first "
            f"{unlike[0]} ({nearest(unlike[0], own)})"
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(given[name])


def _refuse_tied(hf: Any, lora: LoraConfig) -> None:
    if not lora.modules_to_save or not getattr(hf.config, "tie_word_embeddings", False):
        return
    tied = {id(hf.get_input_embeddings()), id(hf.get_output_embeddings())}
    for name, module in hf.named_modules():
        if id(module) in tied and any(name.endswith(wanted) for wanted in lora.modules_to_save):
            raise ConfigError(
                f"learner.lora.modules_to_save names '{name}', whose matrix the model uses at both ends: trained alone "
                "it would no longer be one. Leave it out, or use a model with tie_word_embeddings=false"
            )


def check_adapters(model_path: str, lora: LoraConfig, *, trust_remote_code: bool) -> None:
    """Raise ConfigError where `add_adapters` would, without loading a weight."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(model_path, trust_remote_code=trust_remote_code)
    with torch.device("meta"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        hf = AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
        add_adapters(hf, lora)
