"""Whole runs through the command line: what they write, that they learn, resume, and refuse bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import yaml

from tests.integration.runs import SMALL, read_metrics
from tests.planted import plant, planted_that_ran

METRIC_KEYS = {
    "step",
    "policy_version",
    "reward/total/mean",
    "reward/total/std",
    "rollout/tokens",
    "rollout/response_tokens/mean",
    "rollout/truncated_fraction",
    "rollout/staleness/max",
    "policy/loss",
    "policy/kl_ref",
    "policy/entropy",
    "policy/clip_fraction",
    "policy/grad_norm",
    "policy/lr",
    "sync/logprob_abs_diff/mean",
    "sync/logprob_abs_diff/p999",
    "eval/accuracy",
    "time/step_s",
    "time/rollout_s",
    "time/scoring_s",
    "time/reference_s",
    "time/update_s",
    "time/broadcast_s",
    "throughput/tokens_per_s",
}


def rlsys(*arguments: str, cwd: Path, deadline_s: float = 500) -> subprocess.CompletedProcess[str]:
    """The console command, in a process of its own."""
    command = [sys.executable, "-m", "rlsys.cli", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=deadline_s, check=False)


def train(tmp_path: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    caches = (f"model.cache_dir={tmp_path}/models", f"run_dir={tmp_path}/run")
    return rlsys("train", *SMALL, *caches, *overrides, cwd=tmp_path)


@pytest.mark.long
def test_a_response_ends_at_the_tokens_asked_for(tmp_path: Path) -> None:
    """Every token but `<pad>` ends a response, so a model with random weights gives one character at most."""
    assert rlsys("make-model", "m", cwd=tmp_path).returncode == 0
    (tmp_path / "d.jsonl").write_text(json.dumps({"prompt": "3+1=", "answer": "4"}) + "\n")
    texts = {}
    for name, stop in {"own": [], "every": list(range(1, 101))}.items():
        out = tmp_path / f"{name}.jsonl"
        sampled = ("eval.num_samples=8", "rollout.max_response_tokens=16", "rollout.kv_cache_gib=0.25")
        given = ("m", "data.eval=d.jsonl", f"rollout.stop={stop}", *sampled, "--responses", str(out))
        finished = rlsys("eval", *given, cwd=tmp_path)
        assert finished.returncode == 0, finished.stderr
        texts[name] = [json.loads(line)["response"] for line in out.read_text().splitlines()]
    assert max(map(len, texts["own"])) > 1
    assert max(map(len, texts["every"])) == 1


@pytest.mark.timeout(900)
@pytest.mark.long
@pytest.mark.parametrize("experiment", ["gsm8k_length", "gsm8k_math"])
def test_real_prompts_run_with_every_row_s_outcome(tmp_path: Path, gsm8k: Path, experiment: str) -> None:
    """Main job 2, five steps of it: chat template, BPE tokenizer, reward functions in processes of their own."""
    few = ["train.num_steps=5", "data.eval_limit=8", "logging.trackers=[]", "rollout.kv_cache_gib=0.25"]
    folders = [f"model.cache_dir={tmp_path}/models", f"run_dir={tmp_path}/run"]
    result = rlsys("train", f"experiment={experiment}", *few, *folders, cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows[-5:]] == [1, 2, 3, 4, 5]
    for step in range(1, 6):
        lines = (tmp_path / "run" / "rollouts" / f"step-{step:06d}.jsonl").read_text().splitlines()
        rollouts = [json.loads(line) for line in lines]
        assert len(rollouts) == 64
        assert {rollout["outcome"] for rollout in rollouts} == {"ok"}
        assert all(rollout["prompt"][0]["role"] == "user" for rollout in rollouts)


@pytest.mark.timeout(1200)
def test_a_run_writes_everything_and_resumes_at_the_right_step(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run_dir = tmp_path / "run"
    plant(tmp_path)
    (tmp_path / "reward.py").write_text("def score(completions, *, token, **_): return [0.0 for _ in completions]")
    token = "{name: 'reward.py:score', token: '${oc.env:SERVICE_TOKEN}'}"
    secret = "hunter2-of-the-tests"
    for name in ("SERVICE_TOKEN", "HF_TOKEN", "WANDB_API_KEY"):
        monkeypatch.setenv(name, secret)
    common = ["checkpoint.every=2", "eval.every=2", "data.eval_limit=8", "logging.trackers=[tensorboard]"]
    common.append(f"rewards=[{{name: target_length, target: 4}}, {token}]")
    first = train(tmp_path, *common, "train.num_steps=3")
    assert first.returncode == 0, first.stdout + first.stderr
    assert "step 3/3" in first.stdout
    assert planted_that_ran(tmp_path) == []  # in no process of the run

    rows = read_metrics(run_dir)
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert [row["policy_version"] for row in rows] == [0, 1, 2, 3]
    assert set(rows[2]) >= METRIC_KEYS
    assert "eval/accuracy" in rows[0]
    assert "eval/accuracy" not in rows[1]
    resolved = yaml.safe_load((run_dir / "config.yaml").read_text())
    assert resolved["train"]["num_steps"] == 3
    assert resolved["algorithm"]["corrections"] == []  # null by default: what it came to
    assert list(run_dir.glob("events.out.tfevents.*"))
    rollouts = [json.loads(line) for line in (run_dir / "rollouts" / "step-000001.jsonl").read_text().splitlines()]
    assert len(rollouts) == 16
    assert {"prompt", "response", "reward", "outcome", "parts", "group_id", "advantage", "tokens"} <= set(rollouts[0])
    assert len(rollouts[0]["tokens"]["ids"]) == len(rollouts[0]["tokens"]["logprobs"]) == rollouts[0]["response_tokens"]
    assert sorted(p.name for p in (run_dir / "checkpoints").iterdir()) == ["step-000002", "step-000003"]

    # Killed after step 3, say, with the checkpoint of step 3 lost: it continues after step 2 with the next prompts.
    (run_dir / "checkpoints" / "step-000003" / "state.json").unlink()
    second = train(tmp_path, *common, "train.num_steps=4", "resume=auto")
    assert second.returncode == 0, second.stdout + second.stderr
    assert "resuming from" in second.stdout
    resumed = read_metrics(run_dir)
    assert [row["step"] for row in resumed] == [0, 1, 2, 3, 4]
    again = [json.loads(line) for line in (run_dir / "rollouts" / "step-000003.jsonl").read_text().splitlines()]
    indices = {step: _prompt_indices(run_dir, step) for step in (1, 2, 3, 4)}
    assert len(again) == 16
    assert len(set().union(*indices.values())) == sum(len(i) for i in indices.values()), "a prompt was repeated"

    assert "token: ${oc.env:SERVICE_TOKEN}" in (run_dir / "config.yaml").read_text()
    written = {file.name: file.read_bytes() for file in run_dir.rglob("*") if file.is_file()}
    written |= {"stdout": (first.stdout + first.stderr).encode()}
    assert [name for name, content in written.items() if secret.encode() in content] == []

    refused = train(tmp_path, "train.num_steps=4")
    assert refused.returncode == 1
    assert "already holds a run" in refused.stderr


def _prompt_indices(run_dir: Path, step: int) -> set[int]:
    lines = (run_dir / "rollouts" / f"step-{step:06d}.jsonl").read_text().splitlines()
    return {json.loads(line)["prompt_index"] for line in lines}


def test_it_learns(tmp_path: Path) -> None:
    """Responses of three characters: a policy with random weights comes close to it within a minute."""
    closeness = "rewards=[{name: target_length, target: 3}]"
    given = ("train.num_steps=60", "train.samples_per_prompt=8", "learner.lr=3e-4", "rollout.max_response_tokens=6")
    result = train(tmp_path, *given, closeness)
    assert result.returncode == 0, result.stdout + result.stderr
    rows = read_metrics(tmp_path / "run")[1:]
    rewards = [row["reward/total/mean"] for row in rows]
    assert sum(rewards[-5:]) / 5 >= sum(rewards[:5]) / 5 + 0.5
    assert all(row["sync/logprob_abs_diff/p999"] < 1e-3 for row in rows)


@pytest.mark.long
@pytest.mark.timeout(1800)
def test_it_learns_to_add(tmp_path: Path) -> None:
    """Sums of one-digit numbers: the warmed-up policy gets clearly better within a few dozen steps."""
    result = rlsys(
        "train",
        "experiment=quickstart",
        f"model.cache_dir={tmp_path}/models",
        f"run_dir={tmp_path}/run",
        "data.options.max_operand=9",
        "data.options.held_out=30",
        "model.build.warmup.target_accuracy=0.3",
        "model.build.warmup.max_steps=150",
        "learner.lr=3e-4",
        "learner.lr_schedule=constant",
        "train.num_steps=30",
        "train.prompts_per_step=32",
        "eval.every=30",
        "logging.trackers=[]",
        "rollout.kv_cache_gib=0.25",
        cwd=tmp_path,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    rows = read_metrics(tmp_path / "run")
    rewards = [row["reward/total/mean"] for row in rows[1:]]
    assert sum(rewards[-5:]) / 5 >= sum(rewards[:5]) / 5 + 0.15
    assert all(row["sync/logprob_abs_diff/p999"] < 1e-3 for row in rows[1:])


@pytest.mark.long
def test_a_policy_is_evaluated_as_its_run_did(tmp_path: Path) -> None:
    trained = train(tmp_path, "train.num_steps=2", "eval.every=2", "data.eval_limit=8")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    policy = tmp_path / "run" / "checkpoints" / "step-000002" / "policy"
    evaluated = rlsys("eval", *SMALL, f"model.path={policy}", "data.eval_limit=8", cwd=tmp_path)
    assert evaluated.returncode == 0, evaluated.stdout + evaluated.stderr
    (report,) = json.loads(evaluated.stdout[evaluated.stdout.index("{") :])["data"]
    assert report["num_prompts"] == 8
    assert report["reward_mean"] == pytest.approx(read_metrics(tmp_path / "run")[2]["eval/reward/mean"])


@pytest.mark.long
def test_a_sweep_trains_every_combination_in_a_folder_of_its_own(tmp_path: Path) -> None:
    result = train(tmp_path, "--multirun", "seed=0,1", "train.num_steps=1")
    assert result.returncode == 0, result.stdout + result.stderr
    for job, seed in enumerate((0, 1)):
        folder = tmp_path / "run" / str(job)
        assert yaml.safe_load((folder / "config.yaml").read_text())["seed"] == seed
        assert [row["step"] for row in read_metrics(folder)] == [0, 1]


BAD_INPUT: list[tuple[Sequence[str], str]] = [  # found at once, and last; tests/unit/test_cli.py has more
    (["train.num_step=3"], "did you mean 'train.num_steps'?"),
    (["rollout.max_response_tokens=60", "model.build.warmup.max_steps=0"], "the prompt has"),
]


@pytest.mark.parametrize(("overrides", "message"), BAD_INPUT, ids=[b[0][0].split("=")[0] for b in BAD_INPUT])
def test_bad_input_is_refused_before_ray_starts(tmp_path: Path, overrides: Sequence[str], message: str) -> None:
    given = ["experiment=quickstart", f"model.cache_dir={tmp_path}/models", *overrides]
    result = rlsys("train", *given, cwd=tmp_path, deadline_s=100)
    assert result.returncode == 1
    assert message in result.stderr, result.stderr
    assert "Traceback" not in result.stderr
    assert "starting Ray" not in result.stdout
    assert not (tmp_path / "runs").exists()


def test_a_row_without_the_prompt_column_names_file_and_row(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text('{"prompt": "1+1=", "answer": "2"}\n{"question": "1+2=", "answer": "3"}\n')
    result = rlsys("train", f"data.train={data}", "data.eval=null", f"model.cache_dir={tmp_path}/m", cwd=tmp_path)
    assert result.returncode == 1
    assert "rows.jsonl, line 2: no prompt column 'prompt'" in result.stderr
