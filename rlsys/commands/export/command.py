"""The command line, and what goes into the folder."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path

from rlsys.commands.export.card import write_card
from rlsys.commands.libraries import quiet_libraries
from rlsys.config.compose import to_config
from rlsys.config.paths import absolute, expanded
from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.run_folder.finished import FinishedRun


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the checkpoint to write and where."""
    parser.description = "Write a run's policy, or its adapter, as a Hugging Face folder with a model card."
    parser.add_argument("folder", metavar="RUN", help="a run's folder")
    parser.add_argument("--step", type=int, help="step of the checkpoint (default: the newest)")
    parser.add_argument("--merge", action="store_true", help="merge an adapter into its model's weights")
    parser.add_argument(
        "--output",
        type=expanded,
        metavar="FOLDER",
        help="folder to write (default: RUN/export/step-N, or step-N-merged)",
    )


def run(options: argparse.Namespace) -> None:
    """Write the folder and print where it is."""
    quiet_libraries()
    finished = FinishedRun(Path(absolute(options.folder)))
    checkpoint = finished.checkpoint(options.step)
    name = checkpoint.name + ("-merged" if options.merge else "")
    target: Path = options.output or finished.folder / "export" / name
    if target.exists() and any(target.iterdir()):
        raise ConfigError(f"{target} is there already and not empty: choose another with --output")
    config = to_config(finished.composed())
    kind = _write(checkpoint, target, config, merge=options.merge)
    write_card(target, finished.folder, checkpoint, config, is_adapter=kind == "adapter")
    print(f"{target}: the {kind} after {checkpoint.name.removeprefix('step-').lstrip('0')} steps")
    if kind == "adapter" and Path(base_of(target)).is_dir():
        print(f"note: it belongs to the model in {base_of(target)}, on this machine alone; --merge writes both as one")


def _write(checkpoint: Path, target: Path, config: Config, *, merge: bool) -> str:
    """Copies what the checkpoint has, or merges; returns what it is."""
    adapter, policy = checkpoint / "adapter", checkpoint / "policy"
    if merge and not adapter.is_dir():
        raise ConfigError(f"{checkpoint} holds no adapter: there is nothing to merge; export it without --merge")
    if policy.is_dir():  # whole weights, whether they were trained so or had to travel so
        shutil.copytree(policy, target, dirs_exist_ok=True)
        return "policy"
    if not merge:
        shutil.copytree(adapter, target, dirs_exist_ok=True)
        return "adapter"
    base = base_of(adapter)
    if Path(base).is_absolute() and not Path(base).is_dir():
        raise ConfigError(f"{adapter} belongs to the model in {base}, which is not there any more")
    merge_adapter(base, adapter, target, trust_remote_code=config.model.trust_remote_code)
    return "policy"


def base_of(adapter: Path) -> str:
    """The model that an adapter belongs to."""
    return str(json.loads((adapter / "adapter_config.json").read_text())["base_model_name_or_path"])


def merge_adapter(base: str, adapter: Path, target: Path, *, trust_remote_code: bool) -> None:
    """The model with the adapter as part of its weights: added in float32, stored in the model's own dtype."""
    import torch
    from peft import PeftModel
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    stored = getattr(AutoConfig.from_pretrained(base, trust_remote_code=trust_remote_code), "dtype", None)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, trust_remote_code=trust_remote_code)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.to(stored or torch.float32).save_pretrained(target)
    AutoTokenizer.from_pretrained(adapter, trust_remote_code=trust_remote_code).save_pretrained(target)
