"""A model's folder as others load it: weights, configuration, and the files that only its base model has.

The base's settings for generation are copied, not written anew: transformers refuses to write some that it loads.
"""

from __future__ import annotations

import copy
import json
import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

# Files of a base model that belong to a trained one as they are: generation settings, code, processors, and the
# tokenizer's source, which fast tokenizers do not write.
COPIED = (
    "generation_config.json",
    "*.py",
    "*.model",
    "preprocessor_config.json",
    "processor_config.json",
    "video_preprocessor_config.json",
)


def base_files(path: str) -> list[Path]:
    """Return the files of a model's folder or hub id that every folder made from it gets as they are."""
    folder = Path(path)
    if not folder.is_dir():
        from huggingface_hub import snapshot_download

        folder = Path(snapshot_download(path, allow_patterns=list(COPIED)))
    return sorted(file for pattern in COPIED for file in folder.glob(pattern))


def base_dtype(path: str, *, trust_remote_code: bool = False) -> torch.dtype:
    """Return the dtype that a model's config.json names, float32 if it names none."""
    from transformers import AutoConfig

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    return config.dtype or getattr(config.get_text_config(), "dtype", None) or torch.float32


def saved_dtype(hf: Any, name: str, dtype: torch.dtype) -> torch.dtype:
    """Return a parameter's dtype outside of the learner: `dtype`, but float32 where the architecture insists on it."""
    kept = getattr(hf, "_keep_in_fp32_modules_strict", None) or ()
    return torch.float32 if any(re.search(part, name) for part in kept) else dtype


def write_model(
    target: Path, hf: Any, tensors: Mapping[str, torch.Tensor], dtype: torch.dtype, files: Sequence[Path]
) -> None:
    """Write everything of a model's folder but the tokenizer.

    Args:
        target: made if it does not exist.
        hf: the transformers model that the tensors are of; its own weights do not count.
        tensors: parameters and buffers on the CPU, by their names in `hf` without adapters.
        dtype: the dtype that config.json names.
        files: the base's, as `base_files` returns them.
    """
    from transformers.core_model_loading import revert_weight_conversion

    write_description(target, hf, dtype, files)
    # The names and shapes that the base's own files have: experts are one tensor only inside of transformers.
    _write_weights(target, revert_weight_conversion(hf, dict(tensors)))


def _write_weights(target: Path, tensors: Mapping[str, torch.Tensor]) -> None:
    # Not by huggingface_hub's `save_torch_state_dict`, which refuses views, as experts are of the tensor of all.
    from huggingface_hub import split_torch_state_dict_into_shards
    from safetensors.torch import save_file

    split = split_torch_state_dict_into_shards(dict(tensors))
    for file, names in split.filename_to_tensors.items():
        save_file({name: tensors[name].contiguous() for name in names}, target / file, metadata={"format": "pt"})
    if split.is_sharded:
        index = {"metadata": split.metadata, "weight_map": split.tensor_to_filename}
        (target / "model.safetensors.index.json").write_text(json.dumps(index, indent=2), encoding="utf-8")


def write_description(target: Path, hf: Any, dtype: torch.dtype, files: Sequence[Path]) -> None:
    """Write config.json and the base's files; arguments as of `write_model`."""
    target.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(hf.config)
    config.architectures = [type(hf).__name__]
    for part in (config, *(getattr(config, name, None) for name in config.sub_configs)):
        if part is not None:
            part.dtype = dtype
    # Not by `save_pretrained` of model and configurations: it validates more strictly than loading does.
    config.to_json_file(target / "config.json")
    if hf.can_generate():
        hf.generation_config.to_json_file(target / "generation_config.json")
    for file in files:
        shutil.copyfile(file, target / file.name)


def empty_model(path: str, *, trust_remote_code: bool = False) -> Any:
    """Return the causal model that a folder or hub id describes, on the meta device: shapes without memory."""
    from transformers import AutoConfig, AutoModelForCausalLM

    config = AutoConfig.from_pretrained(path, trust_remote_code=trust_remote_code)
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)
