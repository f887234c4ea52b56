"""Adapters through the whole system: engines that serve them, runs that end in a folder."""

from __future__ import annotations

import asyncio
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from rlsys.cli import execute
from rlsys.errors import WeightMismatchError, WorkerError
from rlsys.orchestrator.batch import StepBatch
from rlsys.weights.from_config import canary_of
from tests.integration.runs import OpenRun, call_worker, read_metrics, sampled, small_run
from tests.integration.test_run import rlsys, train

LORA = ["learner.lora.rank=4", "learner.lora.alpha=8"]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A run one step ahead, with an adapter that one update has changed."""
    overrides = [*LORA, "train.max_staleness=1", "algorithm.kl.coef=0.01", "learner.lr=1e-2"]
    with small_run(tmp_path_factory.mktemp("lora"), overrides) as opened:
        yield opened


def probed(run: OpenRun, version: int) -> dict[str, Any]:
    roles = run.run.roles
    canary = canary_of(run.run.prepared, roles.policy, roles.rollout, roles.cluster.calls)

    async def probe() -> dict[str, Any]:
        canary.begin(version)
        await canary.finish()
        return dict(canary.take())

    return run.wait(probe())


def broadcast(run: OpenRun, version: int) -> dict[str, float]:
    """Only the broadcast, without the canary after it."""
    return run.wait(run.run.weights._broadcaster.broadcast(version))


def test_an_engine_serves_each_version_and_reports_it_when_it_does_not(run: OpenRun) -> None:
    broadcast(run, 1)
    groups = sampled(run, 4, 1)
    assert {summary.policy_version for group in groups for summary in group.rollout.summaries} == {1}
    queue = run.run.reference.queue
    assert queue is not None

    async def update() -> Any:
        scores = await asyncio.gather(*(queue.put(group.rollout) for group in groups))
        referenced = [replace(group, reference=given) for group, given in zip(groups, scores, strict=True)]
        made = await run.run.experience.build(StepBatch(1, tuple(referenced), tuple(range(4))))
        return (await run.run.roles.policy.update(made)).metrics

    metrics = run.wait(update())
    assert metrics["policy/kl_ref"] == pytest.approx(0.0, abs=1e-6)  # before the update policy and reference are one
    assert metrics["sync/logprob_abs_diff/p999"] < 1e-4
    times = broadcast(run, 2)
    assert times["weights/stalled_s"] == 0.0
    found = probed(run, 2)
    assert found["sync/logprob_abs_diff/p999"] < 1e-4 < found["sync/adapter_effect/p999"]

    worker = run.run.roles.rollout._workers[0]
    call_worker(worker, _ignore_adapters)
    with pytest.raises(WeightMismatchError, match=r"rollout/0 and the learner .*: the adapter has not taken effect"):
        probed(run, 2)
    call_worker(worker, _heed_adapters)
    call_worker(worker, _lose_a_matrix)
    with pytest.raises(WorkerError, match=r"rollout-0, policy version 3: the engine holds \d+ matrices B"):
        broadcast(run, 3)
    call_worker(worker, _lose_none)
    broadcast(run, 4)
    assert probed(run, 4)["sync/logprob_abs_diff/p999"] < 1e-4
    assert call_worker(worker, lambda w: len(w._adapters._requests)) == 1  # the versions before are gone
    assert call_worker(worker, lambda w: [p.name for p in w._adapters._folder.iterdir()]) == ["version-4"]


def _ignore_adapters(worker: Any) -> None:
    worker._begin = worker._adapters.begin
    worker._adapters.begin = lambda: (worker._begin()[0], None)


def _heed_adapters(worker: Any) -> None:
    worker._adapters.begin = worker._begin


def _lose_a_matrix(worker: Any) -> None:
    """What is written has one matrix of zeros; what was promised has not."""
    from safetensors.torch import load_file, save_file

    from rlsys.weights.packed_adapter import PackedAdapter

    worker._whole = PackedAdapter.write

    def write(packed: PackedAdapter, folder: Path) -> None:
        worker._whole(packed, folder)
        tensors = load_file(folder / "adapter_model.safetensors")
        lost = next(name for name in tensors if ".lora_B." in name)
        save_file({**tensors, lost: torch.zeros_like(tensors[lost])}, folder / "adapter_model.safetensors")

    PackedAdapter.write = write  # type: ignore[method-assign]


def _lose_none(worker: Any) -> None:
    from rlsys.weights.packed_adapter import PackedAdapter

    PackedAdapter.write = worker._whole  # type: ignore[method-assign]


@pytest.mark.long
def test_an_engine_on_two_ranks_serves_each_version(tmp_path: Path) -> None:
    """Each rank applies its slice of the adapter; a wrong slice would show between engine and learner."""
    overrides = [*LORA, "rollout.tensor_parallel_size=2", "learner.lr=1e-2", "algorithm.kl.coef=0.01"]
    with small_run(tmp_path, overrides) as opened:
        opened.train()
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == [0, 1, 2, 3]
    assert all(row["sync/logprob_abs_diff/p999"] < 1e-4 for row in rows[1:])
    assert rows[-1]["sync/adapter_effect/p999"] > 1e-3
    assert rows[-1]["policy/kl_ref"] > 1e-5


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_run_starts_from_a_given_adapter_and_resumes_from_its_own(tmp_path: Path) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    common = [*LORA, "checkpoint.every=1", "algorithm.kl.coef=0.01"]
    for folder in (first, second):
        folder.mkdir()
    before = train(first, *common, "learner.lr=2e-2", "train.num_steps=2")
    assert before.returncode == 0, before.stdout + before.stderr
    given = first / "run" / "checkpoints" / "step-000002" / "adapter"

    # The same base, which `first` built.
    models = f"model.cache_dir={first}/models"
    slow = [*common, f"model.adapter={given}", models, "learner.lr=1e-6"]
    after = train(second, *slow, "train.num_steps=1")
    assert after.returncode == 0, after.stdout + after.stderr
    # The reference is the base without any adapter: a fresh one differs by nothing from it, the given one does.
    assert read_metrics(first / "run")[1]["policy/kl_ref"] == pytest.approx(0.0, abs=1e-6)
    assert read_metrics(second / "run")[1]["policy/kl_ref"] > 1e-4

    # Another adapter in the place of the given one: a resumed run does not read it again.
    weights = given / "adapter_model.safetensors"
    own = second / "run" / "checkpoints" / "step-000001" / "adapter" / weights.name
    shutil.copy(first / "run" / "checkpoints" / "step-000001" / "adapter" / weights.name, weights)
    resumed = train(second, *slow, "train.num_steps=2", "resume=auto")
    assert resumed.returncode == 0, resumed.stdout + resumed.stderr
    found = load_file(second / "run" / "checkpoints" / "step-000002" / "adapter" / weights.name)
    for name, tensor in load_file(own).items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=1e-5)
    assert any((found[name] - tensor).abs().max() > 1e-3 for name, tensor in load_file(weights).items())


def greedy_responses(folder: Path, prompts: list[str]) -> list[str]:
    """transformers' own, of an exported folder: a model, or an adapter on its base."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    texts = []
    for prompt in prompts:
        ids = tokenizer(prompt, return_tensors="pt")
        out = model.generate(**ids, do_sample=False, max_new_tokens=8)
        texts.append(tokenizer.decode(out[0, ids["input_ids"].shape[1] :], skip_special_tokens=True))
    return texts


DORA = ["learner.lora.use_dora=true", "learner.lora.modules_to_save=[norm]"]


@pytest.mark.long
@pytest.mark.timeout(900)
@pytest.mark.parametrize("options", [[], DORA], ids=["lora", "dora"])
def test_a_run_its_evaluation_and_its_exports_agree(tmp_path: Path, options: list[str]) -> None:
    """Greedy responses of the run's checkpoint by vLLM, which loads adapter or policy as it was saved, of transformers
    with the exported folders, and of vLLM with those."""
    common = [*LORA, *options, "learner.lr=1e-2", "eval.every=2", "data.eval_limit=12", "checkpoint.every=2"]
    trained = train(tmp_path, *common, "train.num_steps=2")
    assert trained.returncode == 0, trained.stdout + trained.stderr
    last = read_metrics(tmp_path / "run")[-1]
    assert last["sync/adapter_effect/p999"] > 1e-3

    # The exports in this process: what the command line adds is a parser.
    execute(["export", str(tmp_path / "run"), "--output", str(tmp_path / "plain")])
    execute(["export", str(tmp_path / "run"), "--output", str(tmp_path / "merged"), *([] if options else ["--merge"])])
    card = (tmp_path / "plain" / "README.md").read_text()
    assert "| 2 |" in card
    assert "rank: 4" in card
    assert "curve.svg" in card

    small = ["rollout.kv_cache_gib=0.25", "rollout.max_num_seqs=64"]
    of_run = rlsys("eval", "run", *small, "--responses", "run.jsonl", cwd=tmp_path)
    assert of_run.returncode == 0, of_run.stdout + of_run.stderr
    (result,) = json.loads(of_run.stdout[of_run.stdout.index("{") :])["data"]
    assert result["reward_mean"] == pytest.approx(last["eval/reward/mean"])
    assert result["num_prompts"] == 12
    rows = [json.loads(line) for line in (tmp_path / "run.jsonl").read_text().splitlines()]
    expected, prompts = [row["response"] for row in rows], [row["prompt"] for row in rows]
    for folder in ("plain", "merged"):
        assert greedy_responses(tmp_path / folder, prompts) == expected
        assert served(tmp_path, folder, small) == expected


def served(tmp_path: Path, folder: str, small: list[str]) -> list[str]:
    """Greedy responses of an exported folder, by vLLM."""
    rewards = "rewards=[{name:target_length,weight:1.0,target:4}]"
    limits = [rewards, "rollout.max_response_tokens=8", "data.eval_limit=12"]
    result = rlsys("eval", folder, *small, *limits, "--responses", f"{folder}.jsonl", cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    return [json.loads(line)["response"] for line in (tmp_path / f"{folder}.jsonl").read_text().splitlines()]
