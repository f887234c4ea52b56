"""Each model family through the whole system: right, or refused before Ray starts, as docs/models.md says.

Per family and way of training: a run of two steps on real engines, an update and a broadcast in each. The run's own
check compares engine and learner at every step. Then the policy is saved, or its adapter merged, and transformers and a
new engine must give the log-probabilities that the run's engine sampled with.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from rlsys.commands.export.command import merge_adapter
from rlsys.config.compose import load_config
from rlsys.errors import ConfigError
from rlsys.preflight.prepare import prepare
from rlsys.run_folder.layout import ADAPTER, POLICY
from rlsys.types import Trajectory
from tests.families.families import BOUND, FAMILIES, VARIANTS, WAYS, build
from tests.families.table import Outcome, Table
from tests.integration.runs import SMALL, OpenRun, call_worker, read_metrics, sampled, small_run


@pytest.mark.long
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(("name", "is_tied"), VARIANTS, ids=[f"{n}-{'tied' if t else 'untied'}" for n, t in VARIANTS])
def test_a_family(name: str, is_tied: bool, way: str, tmp_path: Path, table: Table) -> None:
    table.remove(name, is_tied, way)  # a case that fails must not stay on the page
    table.add(name, is_tied, way, _outcome(name, is_tied, way, tmp_path))


def _outcome(name: str, is_tied: bool, way: str, folder: Path) -> Outcome:
    """Train a tiny member of the family and compare; a ConfigError before Ray starts is the reason of a refusal."""
    model = build(FAMILIES[name], folder / "model", is_tied=is_tied)
    adapted = f"learner.lora.target_modules={FAMILIES[name].adapted}"
    options = [*_options(model, folder), *WAYS[way], *([adapted] if way == "LoRA" else [])]
    try:
        prepare(load_config([*SMALL, *options]))
    except ConfigError as error:
        return Outcome(refused=str(error))
    with small_run(folder, options) as run:
        run.train()
        return _compared(run, model, folder)


def _options(model: Path, folder: Path) -> list[str]:
    # Prompts longer than the sliding windows, so that the windows matter.
    rows = [json.dumps({"prompt": f"{'1+2=3+' * 8}{i}+{i}=", "answer": str(2 * i)}) for i in range(8)]
    (folder / "data.jsonl").write_text("\n".join(rows))
    return [f"model.path={model}", f"data.train={folder / 'data.jsonl'}", "data.eval=null", "train.num_steps=2"]


def _compared(run: OpenRun, model: Path, folder: Path) -> Outcome:
    """Compare the run's engine with the saved policy in transformers and in a new engine."""
    steps = [row for row in read_metrics(run.folder) if row["step"] > 0]
    assert len(steps) == 2
    assert all(row["policy/grad_norm"] > 0 for row in steps)
    roles = run.run.roles
    layout = call_worker(next(iter(roles.policy._workers.values())), lambda rank: rank._engine.module.layout)
    run.wait(run.run.weights.broadcast(1000))
    groups = sampled(run, 2, 1000)
    given = [t for group in groups for t in run.wait(roles.rollout.trajectories(group.rollout))]
    run.wait(roles.policy.save(str(folder / "saved")))
    saved = folder / "saved" / POLICY
    if not saved.is_dir():
        saved = folder / "merged"
        merge_adapter(str(model), folder / "saved" / ADAPTER, saved, dtype=None, trust_remote_code=False)
    assert _change(model, saved) > 1e-4, "training left the weights as they were, so agreement would prove nothing"
    differences = {
        "transformers": _difference(given, _by_transformers(saved, given)),
        "a new engine": _difference(given, _by_engine(saved, given)),
    }
    assert max(differences.values()) < BOUND, f"largest differences from what was sampled: {differences}"
    return Outcome(layout=layout)


def _change(model: Path, saved: Path) -> float:
    """Return the largest change of the log-probabilities of a fixed text."""
    text = [np.arange(6, 46)]
    before, after = (_logprobs_by_transformers(folder, text) for folder in (model, saved))
    return float(np.abs(before[0] - after[0]).max())


def _by_transformers(folder: Path, given: Sequence[Trajectory]) -> list[np.ndarray]:
    return _logprobs_by_transformers(folder, [t.token_ids for t in given])


@torch.no_grad()
def _logprobs_by_transformers(folder: Path, rows: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Compute each row by itself with the model's own forward and plain attention; [L - 1] per row."""
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    logprobs = []
    for row in rows:
        ids = torch.tensor(row.tolist())
        scores = model(ids[None], use_cache=False).logits[0, :-1].log_softmax(-1)
        logprobs.append(scores.gather(1, ids[1:, None])[:, 0].numpy())
    return logprobs


def _by_engine(folder: Path, given: Sequence[Trajectory]) -> list[np.ndarray]:
    """Compute the rows in a new engine, in a process of its own."""
    rows, output = folder.parent / "rows.json", folder.parent / "logprobs.json"
    rows.write_text(json.dumps([t.token_ids.tolist() for t in given]))
    command = [sys.executable, "-m", "tests.families.engine", str(folder), str(rows), str(output)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return [np.array(row) for row in json.loads(output.read_text())]


def _difference(given: Sequence[Trajectory], logprobs: Sequence[np.ndarray]) -> float:
    """Return the largest difference from what the run's engine recorded, over all sampled tokens."""
    return max(
        float(np.abs(t.behavior_logprobs[1:] - row)[t.loss_mask[1:]].max())
        for t, row in zip(given, logprobs, strict=True)
    )
