"""The learner's gradient does not depend on how the work is divided; the optimizer follows its configuration."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from rlsys.build.placement import worker_demands
from rlsys.config.compose import load_config
from rlsys.config.schema import Config
from rlsys.errors import NoRoomError
from rlsys.learner.policy_group import PolicyGroup
from rlsys.learner.rank_group import divide
from rlsys.learner.setup import PolicySetup
from rlsys.models.padding import pad
from rlsys.runtime.cluster import Cluster
from rlsys.types import Coefficients, Experience, ExperienceRow, Trajectory, TrajectoryRef, VersionSpan
from tests.families.families import FAMILIES, build
from tests.integration.runs import call_worker, connected, kill, wait

LENGTHS = [5, 9, 14, 7, 11, 6, 16, 8]  # of eight responses to a prompt of four tokens
ADVANTAGES = [1.0, -0.5, 2.0, -1.5, 0.3, -0.2, 0.9, -2.0]

LONG = pytest.mark.long
# Adam with eps far above any gradient is linear: the step is lr / eps * gradient = the gradient itself.
LINEAR = [
    "learner.lr=1e6",
    "learner.eps=1e6",
    "learner.max_grad_norm=1e9",
    "learner.lr_schedule=constant",
    "learner.warmup_steps=0",
    "train.updates_per_step=1",
]


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    with connected(load_config(["experiment=quickstart", "learner.num_workers=2"]), "learner") as opened:
        yield opened


def trajectories() -> list[Trajectory]:
    generator = np.random.default_rng(7)
    out = []
    for length in LENGTHS:
        total = 4 + length
        mask = np.arange(total) >= 4
        out.append(
            Trajectory(
                token_ids=generator.integers(5, 15, total).astype(np.int32),
                loss_mask=mask,
                behavior_logprobs=np.where(mask, -2.0, 0.0).astype(np.float32),
                versions=(VersionSpan(0, 4, total),),
                finish_reason="stop",
                engine=0,
            )
        )
    return out


def start_learner(cluster: Cluster, model: str, overrides: list[str]) -> tuple[PolicyGroup, Config]:
    common = ["experiment=quickstart", "weights.verify=false", "algorithm.kl.coef=0.1", "rollout.temperature=0.7"]
    config = load_config([*common, *LINEAR, *overrides])
    group = PolicyGroup(cluster, PolicySetup.from_config(config, model, 64), worker_demands(config)["learner"])
    wait(group.start(deadline_s=200))
    return group, config


def experience(num_minibatches: int = 1, given: list[Trajectory] | None = None) -> Experience:
    """Build an experience of all eight trajectories; the loss is a mean over each minibatch's tokens."""
    import ray

    given = given or trajectories()
    size = len(LENGTHS) // num_minibatches
    minibatches = []
    for start in range(0, len(LENGTHS), size):
        chosen = range(start, start + size)
        weight = 1 / sum(LENGTHS[i] for i in chosen)
        minibatches.append(
            tuple(ExperienceRow(i, 0, i, ADVANTAGES[i], weight, 4 + LENGTHS[i], LENGTHS[i]) for i in chosen)
        )
    chunk = ray.put(given)
    ref = [np.where(t.loss_mask, -2.5, 0.0).astype(np.float32) for t in given]
    return Experience(
        minibatches=tuple(minibatches),
        trajectories=(tuple(TrajectoryRef(chunk, index) for index in range(len(given))),),
        ref_logprobs=(ray.put(ref),),
        estimates=None,
        policy_version=0,
        coefficients=Coefficients(kl=0.1, entropy=0.0),
    )


def updated_weights(
    cluster: Cluster,
    model: str,
    overrides: list[str],
    folder: Path,
    num_minibatches: int = 1,
    prepare: Callable[[Any], None] | None = None,
) -> dict[str, torch.Tensor]:
    """Return the parameters after one update, read from the checkpoint's Hugging Face folder."""
    from safetensors.torch import load_file

    group, _ = start_learner(cluster, model, overrides)
    try:
        for worker in group._workers.values() if prepare is not None else ():
            call_worker(worker, prepare)
        metrics = wait(group.update(experience(num_minibatches))).metrics
        assert metrics["policy/grad_norm"] > 1e-3
        wait(group.save(str(folder)))
    finally:
        kill(group)
    return load_file(folder / "policy" / "model.safetensors")


@pytest.fixture(scope="module")
def one_rank_one_microbatch(
    cluster: Cluster, model: str, tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("reference")
    return updated_weights(cluster, model, ["learner.num_workers=1", "learner.zero_stage=0"], folder)


@pytest.mark.parametrize(
    ("ranks", "stage", "offload"),
    [
        pytest.param(2, 2, False, marks=LONG),
        (3, 3, False),  # eight trajectories do not divide by three
        *(
            pytest.param(2, *case, marks=LONG)
            for case in ((0, False), (1, False), (1, True), (2, True), (3, False), (3, True))
        ),
    ],
)
def test_gradient_is_the_same_on_several_ranks_with_several_microbatches(
    cluster: Cluster,
    model: str,
    one_rank_one_microbatch: dict[str, torch.Tensor],
    ranks: int,
    stage: int,
    offload: bool,
    tmp_path: Path,
) -> None:
    # 20 tokens per microbatch: one trajectory each.
    overrides = [
        f"learner.num_workers={ranks}",
        f"learner.zero_stage={stage}",
        f"learner.offload_optimizer={offload}",
        "learner.microbatch_tokens=20",
    ]
    split = updated_weights(cluster, model, overrides, tmp_path)
    initial = _initial(model)
    assert split.keys() == one_rank_one_microbatch.keys()
    for name, whole in one_rank_one_microbatch.items():
        gradient = (whole - initial[name]).norm()
        assert gradient > 0, name
        difference = (split[name] - whole).norm()
        assert difference < 1e-4 * gradient + rounding(whole), (name, float(difference), float(gradient))


def test_a_refused_step_leaves_nothing_behind_with_an_offloaded_optimizer(cluster: Cluster, model: str) -> None:
    """In bfloat16 DeepSpeed sums gradients in a buffer that it does not clear when it refuses them."""
    overrides = ["learner.dtype=bfloat16", "learner.offload_optimizer=true", "learner.microbatch_tokens=20"]
    group, _ = start_learner(cluster, model, overrides)
    nan = replace(experience(), minibatches=tuple(map(not_a_number, experience().minibatches)))
    try:
        refused = wait(group.update(nan)).metrics
        norm = wait(group.update(experience())).metrics["policy/grad_norm"]
    finally:
        kill(group)
    assert not refused["policy/grad_norm"] < np.inf
    assert 1e-3 < norm < np.inf


def not_a_number(rows: tuple[ExperienceRow, ...]) -> tuple[ExperienceRow, ...]:
    return (replace(rows[0], advantage=float("nan")), *rows[1:])


def in_chunks(_: Any) -> None:
    """Let the output layer hold one logit per token at most."""
    from rlsys.models.kernels import head

    head.DENSE_ELEMENTS, head.CHUNK_ELEMENTS, head.MIN_CHUNK = 0, 1, 1


@pytest.mark.parametrize("stage", [pytest.param(0, marks=LONG), 3])
def test_gradient_is_the_same_with_the_vocabulary_in_chunks(
    cluster: Cluster, model: str, one_rank_one_microbatch: dict[str, torch.Tensor], stage: int, tmp_path: Path
) -> None:
    """Tied weights, and with ZeRO-3 an output layer that is gathered again for its backward."""
    overrides = ["learner.num_workers=2", f"learner.zero_stage={stage}", "learner.microbatch_tokens=40"]
    chunked = updated_weights(cluster, model, overrides, tmp_path, prepare=in_chunks)
    initial = _initial(model)
    for name, whole in one_rank_one_microbatch.items():
        difference = (chunked[name] - whole).norm()
        assert difference < 1e-4 * (whole - initial[name]).norm() + rounding(whole), (name, float(difference))


def files_wait_for(rank: Any, file: Path) -> None:
    """Let a rank write no checkpoint before there is a file."""
    from rlsys.learner.saving import Writing

    copy = Writing._copy

    def copy_and_wait(writing: Writing) -> None:
        copy(writing)
        deadline = time.monotonic() + 200
        while not file.exists() and time.monotonic() < deadline:
            time.sleep(0.01)

    Writing._copy = copy_and_wait  # type: ignore[method-assign]


async def save_and_update(group: PolicyGroup, folder: Path) -> dict[str, Any]:
    """Save, and make an update before anything is written; return the update's metrics."""
    go, begun = folder.with_suffix(".go"), asyncio.Event()
    for worker in group._workers.values():
        await asyncio.to_thread(call_worker, worker, functools.partial(files_wait_for, file=go))
    saving = asyncio.ensure_future(group.save(str(folder), begun.set))
    await begun.wait()
    update = await group.update(experience())
    assert not [path for path in folder.rglob("*") if path.is_file()]
    assert not saving.done()
    go.touch()
    await saving
    return update.metrics


@pytest.mark.parametrize(
    ("before", "then"),
    [
        *(pytest.param(each, each, marks=LONG) for each in ((1, 0), (1, 1), (2, 2), (2, 3))),
        pytest.param((3, 2), (1, 1), marks=LONG),
        pytest.param((1, 0), (2, 0), marks=LONG),
        ((2, 3), (1, 3)),
    ],
)
def test_a_restored_learner_continues_as_the_saved_one(
    cluster: Cluster, model: str, before: tuple[int, int], then: tuple[int, int], tmp_path: Path
) -> None:
    """Weights, Adam's moments and the schedule: the second update is the same as without the interruption.

    It was made there before the files of the checkpoint were written. Ranks and stage of ZeRO may be others then.
    """
    from safetensors.torch import load_file

    overrides = ["learner.lr_schedule=linear", "learner.warmup_steps=2", "train.num_steps=10"]
    written_with = {"learner.num_workers": before[0], "learner.zero_stage": before[1]}
    after, metrics = [], []
    for folder, (ranks, stage) in ((None, before), (tmp_path / "first", then)):
        divided = [f"learner.num_workers={ranks}", f"learner.zero_stage={stage}"]
        group, _ = start_learner(cluster, model, [*overrides, *divided])
        try:
            if folder is None:
                wait(group.update(experience()))
                metrics.append(wait(save_and_update(group, tmp_path / "first")))
            else:
                wait(group.load(str(folder), written_with))
                metrics.append(wait(group.update(experience())).metrics)
            wait(group.save(str(tmp_path / f"second-{len(after)}")))
        finally:
            kill(group)
        after.append(load_file(tmp_path / f"second-{len(after)}" / "policy" / "model.safetensors"))
    assert not list(tmp_path.glob(".*"))  # what was converted is gone
    assert metrics[0]["policy/lr"] == metrics[1]["policy/lr"] > 0
    first = load_file(tmp_path / "first" / "policy" / "model.safetensors")
    for name, straight in after[0].items():
        moved = (straight - first[name]).norm()
        assert moved > 0, name
        assert (after[1][name] - straight).norm() < 1e-4 * moved + rounding(straight), name


@pytest.mark.parametrize(
    ("stage", "dtype"),
    [(1, "float32"), *(pytest.param(*case, marks=LONG) for case in ((0, "float32"), (2, "bfloat16"), (3, "bfloat16")))],
)
def test_a_restored_optimizer_has_the_options_that_are_configured_now(
    cluster: Cluster, model: str, tmp_path: Path, stage: int, dtype: str
) -> None:
    common = [f"learner.zero_stage={stage}", f"learner.dtype={dtype}", "learner.lr_schedule=linear"]
    changed = ["learner.lr=1e-4", "learner.eps=1e-6", "learner.betas=[0.8,0.9]", "learner.weight_decay=0.1"]
    first, _ = start_learner(cluster, model, [*common, "train.num_steps=10"])
    try:
        wait(first.update(experience()))
        wait(first.save(str(tmp_path)))
    finally:
        kill(first)
    second, _ = start_learner(cluster, model, [*common, *changed, "train.num_steps=20"])
    try:
        wait(second.load(str(tmp_path)))
        found = call_worker(next(iter(second._workers.values())), options_of_optimizer)
        metrics = wait(second.update(experience())).metrics
    finally:
        kill(second)
    # Its second update, in a schedule of twenty.
    assert metrics["policy/lr"] == pytest.approx(1e-4 * 19 / 20)
    assert found == [(metrics["policy/lr"], (0.8, 0.9), 1e-6, decay) for decay in (0.1, 0.0)]


def options_of_optimizer(rank: Any) -> list[tuple[float, tuple[float, float], float, float]]:
    groups = rank._engine.optimizer.param_groups
    return [(group["lr"], tuple(group["betas"]), group["eps"], group["weight_decay"]) for group in groups]


@pytest.mark.parametrize("stage", [0, pytest.param(1, marks=LONG)])
def test_a_refused_step_does_not_advance_the_schedule(cluster: Cluster, model: str, stage: int) -> None:
    group, _ = start_learner(
        cluster, model, [f"learner.zero_stage={stage}", "learner.lr_schedule=linear", "train.num_steps=4"]
    )
    nan = replace(experience(), minibatches=tuple(map(not_a_number, experience().minibatches)))
    try:
        rates = [wait(group.update(given)).metrics["policy/lr"] for given in (experience(), nan, experience())]
    finally:
        kill(group)
    assert rates == pytest.approx([1e6, 0.75e6, 0.75e6])


def test_no_rank_ever_holds_the_whole_model_with_zero_3(cluster: Cluster, model: str) -> None:
    import ray

    group, _ = start_learner(cluster, model, ["learner.num_workers=2", "learner.zero_stage=3"])
    try:
        # Both at once: loading is a collective.
        held = ray.get([worker.__ray_call__.remote(held_after_loading) for worker in group._workers.values()])
    finally:
        kill(group)
    size = sum(tensor.numel() for tensor in _initial(model).values())
    for whole, own in (counts for of_rank in held for counts in of_rank):
        assert whole == 0
        assert size / 2 <= own < 0.6 * size  # rounded up parameter by parameter


def held_after_loading(rank: Any) -> list[tuple[int, int]]:
    """Load policy and critic again; return how many elements this rank has whole, and how many in its parts."""
    from rlsys.learner.engine import divide_at_once
    from rlsys.models.value import load_critic

    loading = divide_at_once(rank._setup.learner, 2)
    critic = load_critic(rank._setup.model_path, torch.float32, max_tokens=64, loading=loading).decoder
    return [
        (sum(p.numel() for p in model.parameters()), sum(p.ds_tensor.numel() for p in model.parameters()))
        for model in (rank._build_model(), critic)
    ]


def formula(hf: Any, rows: Iterable[int], old: Callable[[int, torch.Tensor], torch.Tensor]) -> torch.Tensor:
    """Compute the loss in a dozen lines: full logits, clipped surrogate + 0.1 * k3, mean over these rows' tokens.

    `old(row, logprobs)` returns the log-probabilities in the ratio's denominator.
    """
    total, given = torch.zeros(()), trajectories()
    chosen = list(rows)
    for row in chosen:
        ids = torch.from_numpy(given[row].token_ids.astype(np.int64))[None]
        logprobs = torch.log_softmax(hf(ids).logits[0, :-1] / 0.7, dim=-1).gather(1, ids[0, 1:, None])[3:, 0]
        ratio = torch.exp(logprobs - old(row, logprobs))
        difference = -2.5 - logprobs
        surrogate = torch.minimum(ratio * ADVANTAGES[row], ratio.clamp(0.8, 1.2) * ADVANTAGES[row])
        total = total + (-surrogate + 0.1 * (torch.exp(difference) - difference - 1)).sum()
    return total / sum(LENGTHS[row] for row in chosen)


def load(model: str) -> Any:
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32)


def descend(hf: Any, loss: torch.Tensor, rate: float = 1.0) -> None:
    """Do what the learner's linear optimizer does: subtract the gradient from the weights."""
    hf.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter -= rate * parameter.grad


def assert_moved_alike(model: str, found: dict[str, torch.Tensor], expected: Any) -> None:
    """Compare the steps away from the initial weights, to 1e-4 of their length."""
    initial = _initial(model)
    for name, parameter in expected.named_parameters():
        step = (initial[name] - parameter.detach()).norm()
        difference = (found[name] - parameter.detach()).norm()
        assert difference < 1e-4 * step + 2 * rounding(initial[name]), (name, float(difference), float(step))


def test_gradient_is_that_of_the_formula(model: str, one_rank_one_microbatch: dict[str, torch.Tensor]) -> None:
    """old_logprobs=learner in a step's first update: the ratio is 1."""
    hf = load(model)
    descend(hf, formula(hf, range(8), lambda _, logprobs: logprobs.detach()))
    assert_moved_alike(model, one_rank_one_microbatch, hf)


def test_on_policy_without_old_logprobs_is_the_same(
    cluster: Cluster, model: str, one_rank_one_microbatch: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    found = updated_weights(cluster, model, ["train.old_logprobs=none"], tmp_path)
    for name, expected in one_rank_one_microbatch.items():
        assert torch.allclose(found[name], expected, rtol=0, atol=1e-6), name


def test_the_engine_s_logprobs_are_what_the_ratio_is_taken_to(cluster: Cluster, model: str, tmp_path: Path) -> None:
    """The engine's log-probabilities are -2 everywhere: ratios are far from 1, and many tokens are clipped."""
    hf = load(model)
    descend(hf, formula(hf, range(8), lambda _, logprobs: torch.full_like(logprobs, -2.0)))
    found = updated_weights(cluster, model, ["train.old_logprobs=engine", "learner.zero_stage=0"], tmp_path)
    assert_moved_alike(model, found, hf)


@pytest.mark.parametrize(
    "ranks_and_stage", [pytest.param((1, 0), marks=LONG), (2, 3)], ids=["one rank", "two ranks, ZeRO-3"]
)
def test_two_minibatches_are_two_updates_with_old_logprobs_from_before_the_first(
    cluster: Cluster, model: str, ranks_and_stage: tuple[int, int], tmp_path: Path
) -> None:
    hf, before = load(model), load(model)

    def old(row: int, _: torch.Tensor) -> torch.Tensor:
        ids = torch.from_numpy(trajectories()[row].token_ids.astype(np.int64))[None]
        with torch.no_grad():
            return torch.log_softmax(before(ids).logits[0, :-1] / 0.7, -1).gather(1, ids[0, 1:, None])[3:, 0]

    for rows in (range(4), range(4, 8)):
        descend(hf, formula(hf, rows, old), rate=0.1)
    overrides = [
        f"learner.num_workers={ranks_and_stage[0]}",
        f"learner.zero_stage={ranks_and_stage[1]}",
        "train.minibatches_per_step=2",
    ]
    overrides += ["learner.lr=1e5", "learner.betas=[0.0,0.999]"]  # a tenth of the gradient, and no momentum
    found = updated_weights(cluster, model, overrides, tmp_path, num_minibatches=2)
    assert_moved_alike(model, found, hf)


def rounding(weights: torch.Tensor) -> float:
    """Return the error of a step that is computed as a difference of float32 weights."""
    return 2.0**-23 * float(weights.norm()) + 1e-7


def _initial(model: str) -> dict[str, torch.Tensor]:
    from safetensors.torch import load_file

    return load_file(Path(model) / "model.safetensors")


@pytest.mark.parametrize(("stage", "offload"), [*(pytest.param(s, False, marks=LONG) for s in (1, 2, 3)), (2, True)])
def test_bfloat16_warmup_schedule_checkpointing_and_two_updates(
    cluster: Cluster, model: str, stage: int, offload: bool
) -> None:
    overrides = [
        "learner.dtype=bfloat16",
        f"learner.zero_stage={stage}",
        f"learner.offload_optimizer={offload}",
        "learner.lr=1e-3",
        "learner.eps=1e-8",
        "learner.max_grad_norm=0.5",
        "learner.lr_schedule=linear",
        "learner.warmup_steps=4",
        "learner.gradient_checkpointing=true",
        "train.num_steps=4",
        "train.updates_per_step=2",
    ]
    group, _ = start_learner(cluster, model, overrides)
    try:
        metrics: list[dict[str, Any]] = [wait(group.update(experience())).metrics for _ in range(3)]
    finally:
        kill(group)
    # Two updates per step: the rate reported is that of the second. Linear warm-up over 4 updates, then down to 0 at 8.
    assert [round(m["policy/lr"] / 1e-3, 6) for m in metrics] == [0.25, 0.75, 0.75]
    assert all(np.isfinite(m["policy/grad_norm"]) and m["policy/entropy"] > 0 for m in metrics)
    # In the second update of a step the policy has moved away from the one that sampled.
    assert any(m["policy/clip_fraction"] > 0 for m in metrics)


@pytest.mark.parametrize(("ranks", "stage"), [pytest.param(1, 1, marks=LONG), (2, 3)])
def test_the_auxiliary_loss_of_a_mixture_of_experts_is_added(
    cluster: Cluster, tmp_path: Path, ranks: int, stage: int
) -> None:
    """The optimizer is linear, so the loss adds its own gradient to the update, as transformers computes it."""
    from transformers import AutoModelForCausalLM

    model = build(FAMILIES["Qwen3-MoE"], tmp_path / "model", is_tied=False)
    options = [f"learner.num_workers={ranks}", f"learner.zero_stage={stage}", "learner.packing=padded"]
    plain = updated_weights(cluster, str(model), options, tmp_path / "plain")
    config = json.loads((model / "config.json").read_text())
    asked = {**config, "output_router_logits": True, "router_aux_loss_coef": 0.5}
    (model / "config.json").write_text(json.dumps(asked))
    balanced = updated_weights(cluster, str(model), options, tmp_path / "balanced")
    hf = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32, attn_implementation="eager")
    for share in divide(experience().minibatches[0], ranks):  # each microbatch has a loss of its own
        given = [trajectories()[index] for index in share]
        ids = pad([t.token_ids for t in given], torch.int64)
        mask = pad([np.ones(t.num_tokens) for t in given], torch.int64)
        weight = 0.5 * sum(LENGTHS[index] for index in share) / sum(LENGTHS)
        (weight * hf(ids, attention_mask=mask, use_cache=False).aux_loss).backward()
    for layer, block in enumerate(hf.model.layers):
        name = f"model.layers.{layer}.mlp.gate.weight"
        gradient = block.mlp.gate.weight.grad
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(plain[name] - balanced[name], gradient, rtol=1e-3, atol=1e-5)


def replayed(run_dir: Path) -> subprocess.CompletedProcess[str]:
    """Replay step 2, in a process of its own."""
    command = [sys.executable, "-m", "rlsys.cli", "replay", str(run_dir), "--step", "2"]
    return subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)


@pytest.mark.parametrize(
    ("options", "num_minibatches"),
    [
        (["learner.zero_stage=1"], 2),
        *(
            pytest.param(*case, marks=LONG)
            for case in (
                (["learner.zero_stage=0"], 2),
                (["learner.zero_stage=2", "learner.offload_optimizer=true"], 1),
                (["learner.zero_stage=3", "learner.dtype=bfloat16"], 1),
                (["learner.num_workers=2", "learner.zero_stage=0"], 2),
                (["learner.num_workers=3", "learner.zero_stage=3"], 1),
                (["learner.num_workers=2", "learner.zero_stage=2", "learner.dtype=bfloat16"], 1),
                (["learner.lora.rank=4", "learner.lora.dropout=0.1"], 2),
                (["learner.num_workers=2", "learner.lora.rank=4", "learner.lora.dropout=0.1"], 1),
            )
        ),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else None,
)
def test_a_step_is_replayed_bit_for_bit_and_another_batch_is_noticed(
    cluster: Cluster, model: str, tmp_path: Path, options: list[str], num_minibatches: int
) -> None:
    """Between ranks sums are made in another order, so several ranks agree within a tolerance, in the first update."""
    folder, dump = tmp_path / "run" / "checkpoints" / "step-000001", tmp_path / "run" / "replay" / "step-000002"
    group, config = start_learner(cluster, model, ["learner.lr=1e-3", "learner.eps=1e-8", *options])
    try:
        wait(group.update(experience()))
        folder.mkdir(parents=True)
        wait(group.save(str(folder)))
        wait(group.update(experience(num_minibatches), str(dump)))
    finally:
        kill(group)
    (folder / "state.json").write_text(json.dumps({"step": 1, "prompt_cursor": 0}))
    # What was recorded is the whole gradient: its norm is the one that DeepSpeed clips.
    updates = json.loads((dump / "record.json").read_text())["computed"]["updates"]
    norms = [sum(one["norm"] ** 2 for one in update["gradients"].values()) ** 0.5 for update in updates]
    assert norms == pytest.approx([update["grad_norm"] for update in updates], rel=1e-3)
    assert len(norms) == num_minibatches
    result = replayed(tmp_path / "run")
    is_exact = config.learner.num_workers == 1
    assert result.returncode == 0, result.stdout + result.stderr
    assert f"step 2 is replayed {'bit for bit' if is_exact else ''}" in result.stdout
    assert ("not bit for bit" in result.stdout) is not is_exact
    assert f"update {num_minibatches if is_exact else 1}, gradient " in result.stdout
    if options != ["learner.zero_stage=1"]:
        return
    path = dump / "rank-0.npz"
    with np.load(path) as file:
        arrays = dict(file)
    arrays["token_ids"][arrays["loss_mask"].argmax()] += 1
    np.savez(path, allow_pickle=False, **arrays)
    tampered = replayed(tmp_path / "run")
    assert tampered.returncode == 1, tampered.stdout + tampered.stderr
    assert "The first in the order of the computation is update 1, loss: the run had " in tampered.stderr
    assert " equal\n" in tampered.stdout.partition("update 1")[0]  # the weights before


@pytest.mark.parametrize(
    ("stage", "rank"), [(1, 1), *(pytest.param(*case, marks=LONG) for case in ((0, 0), (1, 0), (3, 0), (3, 1)))]
)
def test_ranks_that_met_a_full_disk_together_can_save_again(
    cluster: Cluster, model: str, stage: int, rank: int, tmp_path: Path
) -> None:
    """One rank's file is a link to /dev/full: its write fails as on a full disk, amid the group's call."""
    group, _ = start_learner(cluster, model, ["learner.num_workers=2", f"learner.zero_stage={stage}"])
    try:
        wait(group.save(str(tmp_path / "whole")))
        names = sorted(path.name for path in (tmp_path / "whole" / "learner").iterdir())
        of_rank = [name for name in names if f"rank_{rank}_" in name and "optim" in name] or names[:1]
        (tmp_path / "full" / "learner").mkdir(parents=True)
        (tmp_path / "full" / "learner" / of_rank[0]).symlink_to("/dev/full")
        with pytest.raises(NoRoomError, match=rf"learner/{rank if stage else 0}: no room on the disk for .*/full/"):
            wait(group.save(str(tmp_path / "full")))
        wait(group.save(str(tmp_path / "again")))
        assert sorted(path.name for path in (tmp_path / "again" / "learner").iterdir()) == names
        wait(group.load(str(tmp_path / "again")))
        (tmp_path / "no_model" / "policy").mkdir(parents=True)
        (tmp_path / "no_model" / "policy" / "config.json").symlink_to("/dev/full")
        with pytest.raises(NoRoomError, match="no_model/policy"):
            wait(group.save(str(tmp_path / "no_model")))
    finally:
        kill(group)
