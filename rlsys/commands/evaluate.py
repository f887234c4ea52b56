"""`rlsys eval MODEL_OR_RUN`: evaluates with engines and scoring workers, without a learner."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rlsys.commands.libraries import quiet_libraries
from rlsys.commands.output import output_file
from rlsys.commands.overrides import add_overrides
from rlsys.config.compose import compose, to_config
from rlsys.config.overrides import keys_set, names_a_run
from rlsys.config.paths import expand
from rlsys.config.schema import Config
from rlsys.config.written import as_written
from rlsys.errors import ConfigError
from rlsys.run_folder.checkpoint import model_of
from rlsys.run_folder.folder import RunFolder, apply_overrides

if TYPE_CHECKING:  # `rlsys eval --help` and completion load no torch
    from rlsys.evaluation.evaluate import Evaluation, Evaluations, Responses
    from rlsys.evaluation.intervals import Estimate
    from rlsys.orchestrator.sampling import GroupSampler
    from rlsys.preflight.prepared import Prepared
    from rlsys.scoring.pool import ScoringPool

DESCRIPTION = """\
Evaluate a model, or a run's newest checkpoint, on held-out prompts: one greedy response per prompt, and with
eval.num_samples=N as many drawn ones. A run brings its own configuration, a model takes the defaults:

  rlsys eval runs/mine eval.num_samples=8
  rlsys eval Qwen/Qwen2.5-0.5B-Instruct data=gsm8k reward=math_answer rollout.max_response_tokens=512

The table goes to the standard error stream, the results as JSON to the standard output.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare what to evaluate and where to write."""
    parser.description = DESCRIPTION
    parser.add_argument(
        "target", nargs="?", metavar="MODEL_OR_RUN", help="a model's folder or hub id, or a run's folder"
    )
    add_overrides(parser)
    parser.add_argument("--step", type=int, help="step of the run's checkpoint (default: the newest)")
    parser.add_argument("--output", type=output_file, metavar="FILE", help="write the JSON to this file too")
    parser.add_argument(
        "--responses", type=output_file, metavar="FILE", help="write every response, one JSON object per line"
    )


def run(options: argparse.Namespace) -> None:
    """Evaluate, print the table and the JSON, and write the files asked for."""
    target, overrides = _target_of([word for word in (options.target, *options.overrides) if word is not None])
    prepared, results = evaluate_target(target, overrides, step=options.step, responses=options.responses)
    answer = json.dumps(as_json(prepared, results), indent=2)
    _show(results, prepared.config)
    print(answer)
    if options.output is not None:
        options.output.write_text(answer + "\n", encoding="utf-8")


def _target_of(words: Sequence[str]) -> tuple[str | None, list[str]]:
    """Return the model or run among the words of a command line, and the overrides, which may stand on both sides."""
    # A folder may be named as an override is, as in a sweep's `runs/lr=1`.
    there = {word for word in words if os.path.exists(os.path.expanduser(word))}  # `~data` is no user of this machine
    found = next((word for word in words if word in there or not re.match(r"[^=]*=|~[\w.@]+$", word)), None)
    overrides = list(words)
    if found is not None:
        overrides.remove(found)
    return found, overrides


def evaluate_target(
    target: str | None, overrides: Sequence[str], *, step: int | None = None, responses: Path | None = None
) -> tuple[Prepared, list[Evaluation]]:
    """Evaluate a model or a run on every held-out data set.

    Args:
        target: a model's folder or hub id, a run's folder, or None for the model that `overrides` name.
        overrides: as for `rlsys train`.
        step: the step of the run's checkpoint; None is the newest.
        responses: file for the responses.

    Raises:
        RlsysError: for what cannot be evaluated, before Ray starts where possible.
    """
    from rlsys.preflight.prepare import prepare

    quiet_libraries()
    prepared = prepare(config_of(target, overrides, step=step), training=False)
    if not prepared.eval_sets:
        raise ConfigError("data.eval is null, so there is nothing to evaluate on: set it to held-out rows")
    return prepared, _evaluated(prepared, responses)


def as_json(prepared: Prepared, results: Sequence[Evaluation]) -> dict[str, Any]:
    """Return the results, and what was evaluated, as plain data."""
    from rlsys.rewards.judges import judges_of

    config = prepared.config
    return {
        "model": prepared.model_path,
        "adapter": config.model.adapter,
        "rewards": as_written(config.rewards),
        "accuracy_from": list(judges_of(config)) or None,  # None: the total
        "correct_at": config.eval.correct_at,
        "confidence": config.eval.confidence,
        "temperature": config.eval.temperature if config.eval.num_samples else None,
        "data": [dataclasses.asdict(result) for result in results],
    }


def config_of(target: str | None, overrides: Sequence[str], *, step: int | None = None) -> Config:
    """Return the configuration to evaluate: a run's own, or the defaults with a model; both with `overrides`."""
    keys = keys_set(overrides)
    named = [key for key in ("model.path", "model.adapter") if key in keys]
    if target is not None and ("model.path" in named or (named and RunFolder.is_run(target))):
        raise ConfigError(f"'{target}' is what is evaluated, and {named[0]} names another model: give one of the two")
    if target is not None and RunFolder.is_run(target):
        run = RunFolder.open(target)
        own = run.typed_config()
        config = to_config(apply_overrides(own, compose(overrides), overrides) if overrides else own)
        checkpoint = run.checkpoint(step)
        return _seeded(_with_model(str(model_of(checkpoint)), replace(config, run_dir=None, resume="never")))
    if step is not None:
        where = f", and '{target}' is not a run's folder" if target else ""
        raise ConfigError(f"--step chooses a checkpoint of a run{where}")
    config = to_config(compose(overrides))
    if target is None and not names_a_run(overrides):
        raise ConfigError(
            "no model, run or experiment is given: name a run's folder or a model, as in `rlsys eval runs/mine`, or an "
            "experiment, as in `rlsys eval experiment=quickstart`"
        )
    if config.model.adapter is not None:
        return _seeded(_with_model(config.model.adapter, config, base=target or config.model.path))
    return _seeded(_with_model(target, config) if target is not None else _without_adapter(config))


def _evaluated(prepared: Prepared, responses: Path | None) -> list[Evaluation]:
    """Start engines and scoring workers, evaluate, and write the responses to a file when one is given."""
    from rlsys.build.run import open_evaluation
    from rlsys.evaluation.evaluate import evaluate
    from rlsys.rollout.setup import LOADED_VERSION
    from rlsys.runtime.interrupt import run_until_interrupted

    async def results_of(sampler: GroupSampler, scoring: ScoringPool) -> Evaluations:
        results = await evaluate(sampler, prepared.eval_sets, prepared.config, policy_version=LOADED_VERSION)
        if responses is not None:
            lines = [line for part in results.responses for line in await _response_lines(part, scoring)]
            responses.write_text("".join(lines), encoding="utf-8")
        return results

    async def whole() -> Evaluations:
        async with open_evaluation(prepared) as (sampler, scoring, background):
            return await background.supervise(results_of(sampler, scoring))

    return run_until_interrupted(whole()).all()


async def _response_lines(part: Responses, scoring: ScoringPool) -> list[str]:
    """Return one line of JSON per response to one data set's prompts."""
    lines = []
    for kind, groups in (("greedy", part.greedy), ("drawn", part.drawn)):
        for prompt, reward in ((p, r) for p, group in zip(part.eval_set.prompts, groups, strict=False) for r in group):
            row = {"data": part.eval_set.label, "prompt_index": prompt.index, "prompt": prompt.text, "kind": kind}
            row |= {"response": await scoring.text(reward.response), "reward": reward.total}
            lines.append(json.dumps(row, ensure_ascii=False) + "\n")
    return lines


def _with_model(model: str, config: Config, base: str | None = None) -> Config:
    """Return the configuration with another model: whole weights, or an adapter's folder, which names its base."""
    description = expand(model) / "adapter_config.json"
    if not description.is_file():
        return _without_adapter(replace(config, model=replace(config.model, path=model, adapter=None)))
    given = json.loads(description.read_text(encoding="utf-8"))
    # vLLM's buffers are sized by the rank; DoRA and whole modules of a given adapter are refused by preflight.
    lora = replace(config.learner.lora, rank=int(given["r"]), use_dora=False, modules_to_save=[])
    chosen = replace(config.model, path=base or str(given["base_model_name_or_path"]), adapter=model)
    return replace(config, model=chosen, learner=replace(config.learner, lora=lora))


def _without_adapter(config: Config) -> Config:
    """Return the configuration without `learner.lora`: nothing is trained here, only a given adapter is served."""
    return replace(config, learner=replace(config.learner, lora=replace(config.learner.lora, rank=0)))


def _seeded(config: Config) -> Config:
    """Return the configuration with seeded sampling: the same command gives the same numbers."""
    return replace(config, rollout=replace(config.rollout, seeded=True))


def _show(results: Sequence[Evaluation], config: Config) -> None:
    """Print the table of the results."""
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
