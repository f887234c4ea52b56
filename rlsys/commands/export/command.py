"""The command line of `rlsys export`, and the weights of the exported folder."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from rlsys.commands.export.card import write_card
from rlsys.commands.libraries import quiet_libraries
from rlsys.commands.output import output_folder
from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.run_folder.checkpoint import step_of
from rlsys.run_folder.folder import RunFolder
from rlsys.run_folder.layout import ADAPTER, POLICY


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoint to write and where."""
    parser.description = "Write a run's policy, or its adapter, as a Hugging Face folder with a model card."
    parser.add_argument("folder", metavar="RUN", help="a run's folder")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
    parser.add_argument("--merge", action="store_true", help="merge an adapter into its model's weights")
    parser.add_argument(
        "--output",
        type=output_folder,
        metavar="FOLDER",
        help="folder to write (default: RUN/export/step-N, or step-N-merged)",
    )


def run(options: argparse.Namespace) -> None:
    """Write the folder and print where it is."""
    quiet_libraries()
    folder = RunFolder.open(options.folder)
    checkpoint = folder.checkpoint(options.step)
    name = checkpoint.name + ("-merged" if options.merge else "")
    target: Path = options.output or folder.path / "export" / name
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} exists and is not empty: choose another folder with --output")
    config = folder.config()
    kind = _write(checkpoint, target, config, merge=options.merge)
    write_card(target, folder, checkpoint, config, is_adapter=kind == "adapter")
    print(f"{target}: the {kind} after {step_of(checkpoint)} steps")
    if kind == "adapter" and Path(base_of(target)).is_dir():
        print(
            f"note: the adapter needs the model in {base_of(target)}, a folder of this machine; --merge writes one "
            "model of both"
        )


def _write(checkpoint: Path, target: Path, config: Config, *, merge: bool) -> str:
    """Copy the checkpoint's weights, or merge its adapter; return "policy" or "adapter", which the folder holds."""
    adapter, policy = checkpoint / ADAPTER, checkpoint / POLICY
    if merge and not adapter.is_dir():
        raise ConfigError(f"{checkpoint} holds no adapter, so there is nothing to merge: export it without --merge")
    if policy.is_dir():  # whole weights: without LoRA, or with an adapter that vLLM cannot load by itself
        shutil.copytree(policy, target, dirs_exist_ok=True)
        return "policy"
    if not merge:
        shutil.copytree(adapter, target, dirs_exist_ok=True)
        return "adapter"
    base = base_of(adapter)
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ConfigError(
            f"{adapter} needs the model in {base}, and that folder does not exist: restore it, then export"
        )
    remote = config.model.trust_remote_code
    merge_adapter(base, adapter, target, dtype=config.checkpoint.dtype, trust_remote_code=remote)
    return "policy"


def base_of(adapter: Path) -> str:
    """Return the path or hub id of the model that an adapter belongs to."""
    return str(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])


def merge_adapter(base: str, adapter: Path, target: Path, *, dtype: str | None, trust_remote_code: bool) -> None:
    """Write the model with the adapter merged into its weights: added in float32, rounded once to `dtype`.

    Tokenizer and chat template are those that the adapter was trained with. `dtype` None stands for the base's.
    """
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from rlsys.models.folder import base_dtype, base_files, write_model
    from rlsys.models.policy import DTYPES
    from rlsys.weights.gather import full_state

    stored = base_dtype(base, trust_remote_code=trust_remote_code) if dtype is None else DTYPES[dtype]
    # bfloat16 would round away small changes of the adapter while it is added.
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=trust_remote_code)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    write_model(target, merged, full_state(merged, 0, stored), stored, base_files(base))
    AutoTokenizer.from_pretrained(adapter, trust_remote_code=trust_remote_code).save_pretrained(target)
