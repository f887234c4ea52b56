"""The header of a report: what the run trained, how, and how far it got."""

from __future__ import annotations

import contextlib
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from omegaconf import OmegaConf

from rlsys.algorithms.requirements import reference_workers
from rlsys.config.dotted import flatten
from rlsys.errors import RlsysError
from rlsys.metrics.formatting import duration
from rlsys.run_folder.folder import RunFolder

Facts = list[tuple[str, str]]


def facts(run: RunFolder) -> Facts:
    """Return what was run, as labels and texts; options that the configuration does not hold are left out."""
    config = run.options
    train, algorithm = _node(config, "train"), _node(config, "algorithm")
    stated = [
        ("Model", _model(config)),
        ("Data", _list(_node(config, "data").get("train"))),
        ("Algorithm", _algorithm(algorithm)),
        ("Corrections", _list(algorithm.get("corrections"))),
        ("KL", _kl(_node(algorithm, "kl"))),
        ("Rewards", _list(config.get("rewards"))),
        ("Learning rate", _text(_node(config, "learner").get("lr"))),
        ("Batch", _batch(train)),
        ("Staleness allowed", _text(train.get("max_staleness"))),
        ("Workers", _workers(run)),
        ("Seed", _text(config.get("seed"))),
        ("Folder", str(run.path).encode("utf-8", "replace").decode()),
    ]
    return [(label, text) for label, text in stated if text]


def figures(run: RunFolder) -> list[tuple[str, str, str]]:
    """Return how far the run got, as labels, values and details."""
    rows = run.rows
    steps = int(rows[-1]["step"] or 0)
    planned = _node(run.options, "train").get("num_steps")
    found = [("Steps", str(steps), f"of {planned}" if planned else "")]
    for label, key in (("Held-out accuracy", "eval/accuracy"), ("Mean reward", "reward/total/mean")):
        values = _values(rows, key)
        if values:
            (last, value), best = values[-1], max(values, key=lambda pair: pair[1])
            found.append((label, f"{value:.3f}", f"at step {last}; best {best[1]:.3f} at step {best[0]}"))
    speeds = [value for _, value in _values(rows, "throughput/tokens_per_s")]
    if speeds:
        found.append(("Throughput", f"{statistics.median(speeds):,.0f}", "tokens per second, median over steps"))
    seconds = [value for key in ("time/step_s", "time/eval_s") for _, value in _values(rows, key)]
    if seconds:
        found.append(("Time", duration(sum(seconds)), "in steps and evaluations"))
    return found


def config_lines(options: Mapping[str, Any]) -> dict[str, str]:
    """Return a configuration's values under dotted keys, as YAML."""
    return {key: _yaml(value) for key, value in flatten(options).items()}


def _yaml(value: Any) -> str:
    return OmegaConf.to_yaml(OmegaConf.create({"v": value})).removeprefix("v:").strip()


def _values(rows: Sequence[Mapping[str, float | None]], key: str) -> list[tuple[int, float]]:
    return [(int(row["step"] or 0), value) for row in rows if (value := row.get(key)) is not None]


def _node(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    node = config.get(key)
    return node if isinstance(node, Mapping) else {}


def _text(value: Any) -> str:
    return "" if value is None else str(value)


def _component(node: Any) -> str:
    """Return a component `{name: n, option: v}` as text: `n (option v)`."""
    if not isinstance(node, Mapping):
        return _text(node)
    options = ", ".join(f"{key} {_text(value)}" for key, value in node.items() if key not in ("name", "path"))
    name = _text(node.get("name") or node.get("path"))
    return f"{name} ({options})" if options and name else name or options


def _list(nodes: Any) -> str:
    return ", ".join(map(_component, nodes)) if isinstance(nodes, list) else _component(nodes)


def _model(config: Mapping[str, Any]) -> str:
    model = _node(config, "model")
    if model.get("path"):
        return str(model["path"])
    build = _node(model, "build")
    if not build:
        return ""
    shape = f"{build.get('num_layers')} layers of {build.get('hidden_size')}"
    return f"{build.get('architecture')}, {shape}, built on the spot"


def _algorithm(algorithm: Mapping[str, Any]) -> str:
    parts = (("advantage", "advantages"), ("policy_loss", "loss"), ("aggregation", "over tokens"))
    return "; ".join(f"{_component(algorithm[key])} {what}" for key, what in parts if algorithm.get(key))


def _kl(kl: Mapping[str, Any]) -> str:
    return f"{kl['coef']} × {kl.get('name')} in the {kl.get('apply_to', '?')}" if kl.get("coef") else ""


def _batch(train: Mapping[str, Any]) -> str:
    prompts, samples = train.get("prompts_per_step"), train.get("samples_per_prompt")
    return f"{prompts} prompts × {samples} responses" if prompts and samples else ""


def _workers(run: RunFolder) -> str:
    counts = {role: _node(run.options, role).get("num_workers") for role in ("rollout", "scoring", "learner")}
    with contextlib.suppress(RlsysError):  # the configuration of another version: whether there are any is not known
        counts["reference"] = reference_workers(run.config())
    return ", ".join(f"{role} {count}" for role, count in counts.items() if count)
