"""`rlsys eval MODEL_OR_RUN`: engines and reward workers, no learner."""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rlsys.build.run import open_evaluation
from rlsys.config.compose import composed, to_config
from rlsys.config.schema import Config
from rlsys.errors import ConfigError
from rlsys.evaluation.evaluate import Evaluation, evaluate
from rlsys.evaluation.intervals import Estimate
from rlsys.preflight.prepare import EvalSet, Prepared, prepare
from rlsys.rollout.pool import RolloutPool
from rlsys.run_folder.folder import RunFolder, overridden
from rlsys.types import Reward


def evaluation(arguments: Sequence[str]) -> None:
    """Parse, evaluate, print the table (stderr) and the JSON (stdout, and `--output`)."""
    parser = argparse.ArgumentParser(
        "rlsys eval",
        description="Greedy and sampled answers of a model, or of a run's newest checkpoint, to held-out prompts.",
        epilog="A run brings its own configuration, a model takes the defaults. Overrides as for "
        "rlsys train: data=gsm8k eval.num_samples=8 'data.eval=[a.jsonl, b.jsonl]' reward=math_answer",
    )
    parser.add_argument(
        "target", nargs="?", metavar="MODEL_OR_RUN", help="a model's folder or hub id, or a run's folder"
    )
    parser.add_argument("--step", type=int, help="of the run's checkpoint; the newest without")
    parser.add_argument("--output", type=Path, metavar="FILE", help="write the JSON there too")
    parser.add_argument("--responses", type=Path, metavar="FILE", help="write every response there, one a line")
    options, overrides = parser.parse_known_args(arguments)
    if options.target is not None and "=" in options.target:
        overrides, options.target = [options.target, *overrides], None
    prepared = prepare(_config(options.target, options.step, overrides), _say, training=False)
    results = evaluation_run(prepared, options.responses)
    answer = json.dumps(as_json(prepared, results), indent=2)
    _show(results, prepared.config)
    print(answer)
    if options.output is not None:
        options.output.write_text(answer + "\n", encoding="utf-8")


def evaluation_run(prepared: Prepared, responses: Path | None = None) -> list[Evaluation]:
    """Evaluate the model on every held-out data set; `responses` is a file for what it answered."""
    if not prepared.eval_sets:
        raise ConfigError("data.eval is null: there is nothing to evaluate on")
    with contextlib.ExitStack() as stack:
        file = stack.enter_context(responses.open("w", encoding="utf-8")) if responses is not None else None
        sampler = stack.enter_context(open_evaluation(prepared))

        def tell(eval_set: EvalSet, kind: str, rewards: Sequence[Sequence[Reward]]) -> None:
            assert file is not None
            for prompt, group in zip(eval_set.prompts, rewards, strict=True):
                for reward in group:
                    row = {"data": eval_set.label, "prompt_index": prompt.index, "prompt": prompt.text, "kind": kind}
                    row |= {"response": sampler.text(reward.response), "reward": reward.total}
                    file.write(json.dumps(row, ensure_ascii=False) + "\n")

        return evaluate(
            sampler,
            prepared.eval_sets,
            prepared.config,
            policy_version=RolloutPool.LOADED_VERSION,
            tell=tell if file is not None else None,
        ).all()


def as_json(prepared: Prepared, results: Sequence[Evaluation]) -> dict[str, Any]:
    """The results with what they are of."""
    config = prepared.config
    return {
        "model": prepared.model_path,
        "adapter": config.model.adapter,
        "rewards": [dict(spec) for spec in config.rewards],
        "correct_at": config.eval.correct_at,
        "confidence": config.eval.confidence,
        "temperature": config.eval.temperature if config.eval.num_samples else None,
        "data": [dataclasses.asdict(result) for result in results],
    }


def _config(target: str | None, step: int | None, overrides: Sequence[str]) -> Config:
    """What is evaluated: a run as it was configured, or a model without an experiment's settings."""
    if target is not None and RunFolder.is_run(target):
        run = RunFolder.open(target)
        own = run.composed()
        config = to_config(overridden(own, composed(overrides), overrides) if overrides else own)
        checkpoint = run.checkpoint(step)
        policy = checkpoint / "policy" if (checkpoint / "policy").is_dir() else checkpoint / "adapter"
        return _seeded(_of(str(policy), replace(config, run_dir=None, resume="never")))
    if step is not None:
        raise ConfigError("--step belongs to a run" + (f", and '{target}' is not the folder of one" if target else ""))
    config = to_config(composed([*_without_experiment(target, overrides), *overrides]))
    if config.model.adapter is not None:
        return _seeded(_of(config.model.adapter, config, base=target or config.model.path))
    return _seeded(_of(target, config) if target is not None else _without_adapter(config))


def _without_experiment(target: str | None, overrides: Sequence[str]) -> list[str]:
    """The override that leaves out the default experiment, whose settings suit its own model; none where overrides
    name an experiment, or no other model."""
    keys = {override.lstrip("+~").partition("=")[0] for override in overrides}
    if "experiment" in keys or (target is None and not keys & {"model.path", "model.adapter"}):
        return []
    return ["~experiment"]


def _of(model: str, config: Config, base: str | None = None) -> Config:
    """The configuration with `model`: whole weights, or an adapter's folder, which says what it belongs to."""
    description = Path(model).expanduser() / "adapter_config.json"
    if not description.is_file():
        return _without_adapter(replace(config, model=replace(config.model, path=model, adapter=None)))
    given = json.loads(description.read_text(encoding="utf-8"))
    lora = replace(config.learner.lora, rank=int(given["r"]), use_dora=False, modules_to_save=[])
    chosen = replace(config.model, path=base or str(given["base_model_name_or_path"]), adapter=model)
    return replace(config, model=chosen, learner=replace(config.learner, lora=lora))


def _without_adapter(config: Config) -> Config:
    """Nothing is trained here: an adapter is served when there is one."""
    return replace(config, learner=replace(config.learner, lora=replace(config.learner.lora, rank=0)))


def _seeded(config: Config) -> Config:
    """The same command gives the same numbers."""
    return replace(config, rollout=replace(config.rollout, seeded=True))


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _show(results: Sequence[Evaluation], config: Config) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table()
    for column in ("data", "measure", "value", f"{config.eval.confidence:.0%} interval"):
        table.add_column(column, justify="right" if column == "value" else "left")
    for result in results:
        table.add_section()
        table.add_row(result.label, "prompts", str(result.num_prompts), "")
        table.add_row("", "without a valid reward", str(result.num_failed), "")
        if result.num_failed_samples:
            table.add_row("", "drawn responses without one", str(result.num_failed_samples), "")
        table.add_row("", "greedy accuracy", *_interval(result.accuracy))
        table.add_row("", "greedy reward", f"{result.reward_mean:.4g}", "")
        if result.mean_at is not None:
            table.add_row("", f"mean@{result.num_samples}", *_interval(result.mean_at))
        for k, estimate in result.pass_at.items():
            table.add_row("", f"pass@{k}", *_interval(estimate))
    Console(stderr=True).print(table)


def _interval(estimate: Estimate) -> tuple[str, str]:
    return f"{estimate.value:.3f}", f"{estimate.low:.3f} to {estimate.high:.3f}"
