"""Learner and critic ranks on an imaginary GPU: DeepSpeed's engine, a step's updates, and the IPC channel's opening.

There are two ranks, of which the first is here. The group moves no bytes. ZeRO-3 is left out: DeepSpeed keeps a
parameter's parts in attributes of the parameter, which fakes lose; it runs on CPUs in the integration tests.
"""

from __future__ import annotations

import socket
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist

from rlsys.config.compose import load_config
from rlsys.learner.critic_rank import CriticRank
from rlsys.learner.policy_rank import PolicyRank
from rlsys.learner.rank import Rank
from rlsys.learner.rank_batch import RankBatch
from rlsys.learner.setup import CriticSetup, PolicySetup
from rlsys.types import Coefficients, ExperienceRow, Trajectory
from tests.fake_cuda.gpu import FakeGpu

CONFIGS = Path(__file__).parents[2] / "configs" / "algorithm"
KLS = ("k1", "k2", "k3", "abs")
RESPONSES = (4, 6, 5, 2)  # tokens; two trajectories per prompt
TWO_RANKS = ["cluster.num_gpus=2", "learner.num_workers=2", "critic.num_workers=2", "weights.verify=false"]


def trajectory(number: int) -> Trajectory:
    """A prompt of three tokens, and a response whose tokens got log-probability 0."""
    ids = np.concatenate([np.full(3, 5 + number // 2), np.arange(10, 10 + RESPONSES[number])]).astype(np.int32)
    return Trajectory(ids, np.arange(len(ids)) >= 3, np.zeros(len(ids), np.float32), (), "stop", 0)


TRAJECTORIES = [trajectory(number) for number in range(len(RESPONSES))]


def rank_batch(*, has_estimates: bool = False) -> RankBatch:
    rows = [
        ExperienceRow(i, i // 2, i % 2, 0.5, 0.1, t.num_tokens, int(t.loss_mask.sum()))
        for i, t in enumerate(TRAJECTORIES)
    ]
    places = [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]
    return RankBatch((tuple(rows),), (sum(RESPONSES),), Coefficients(0.0, 0.0), 0, places, False, has_estimates)


def start(rank: Rank) -> None:
    """Start rank 0; the other one comes to the meeting and does nothing more."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    threading.Thread(target=dist.TCPStore, args=("127.0.0.1", port, 2, False), daemon=True).start()
    rank.start("127.0.0.1", port)


@pytest.mark.parametrize(
    "overrides",
    [
        ["learner.zero_stage=0"],
        ["learner.zero_stage=0", "learner.dtype=float32"],
        [],
        ["learner.dtype=float32"],
        ["learner.zero_stage=2"],
        ["learner.offload_optimizer=true", "learner.gradient_checkpointing=true"],
        ["learner.lora.rank=4", "learner.lora.dropout=0.1"],
    ],
    ids=" ".join,
)
def test_a_policy_makes_a_step(tiny: Path, overrides: list[str]) -> None:
    config = load_config([*TWO_RANKS, "algorithm.kl.coef=0", *overrides])
    with FakeGpu():
        rank = PolicyRank(0, PolicySetup.from_config(config, str(tiny), 64))
        start(rank)
        assert rank.placement() == f"shared_prompt in {config.learner.dtype} on imaginary GPU"
        metrics, nonfinite = rank.update(rank_batch(), TRAJECTORIES)
        rank.open_weights("ipc", "", 0, 0)  # has 80 GiB
        logprobs, _ = rank.probe(TRAJECTORIES[0].token_ids)
    assert nonfinite == []
    assert metrics["policy/updates_applied"] == 1.0
    assert logprobs.shape == (6,)
    assert {p.device for p in rank._engine.module.parameters()} == {torch.device("cuda", 0)}


def losses() -> list[list[str]]:
    """The presets that differ in the policy loss, and what may be added to one."""
    presets = sorted(file.stem for file in CONFIGS.glob("*.yaml"))
    by_loss = {str(load_config([f"algorithm={name}"]).algorithm.policy_loss): name for name in presets}
    return [
        *([f"algorithm={name}"] for name in by_loss.values()),
        ["algorithm.corrections=[{name: truncate},{name: mask,level: geometric,weigh: false},{name: opsm}]"],
        *([f"algorithm.kl.name={name}", "algorithm.kl.coef=0.1", "algorithm.kl.unbiased=true"] for name in KLS),
        ["algorithm.entropy.coef=0.01", "algorithm.entropy.top_quantile=0.5"],
        ["algorithm.aggregation={name: local_token_mean}", "train.old_logprobs=engine"],
    ]


def test_every_loss_is_computed_on_the_gpu(tiny: Path) -> None:
    references = [[np.full(t.num_tokens, -1.0, np.float32) for t in TRAJECTORIES[i : i + 2]] for i in (0, 2)]
    batch = replace(rank_batch(), has_reference=True, coefficients=Coefficients(0.1, 0.01))
    with FakeGpu():
        rank: PolicyRank | None = None
        for overrides in losses():
            setup = PolicySetup.from_config(load_config([*TWO_RANKS, *overrides]), str(tiny), 64)
            if rank is None:
                rank = PolicyRank(0, setup)
                start(rank)
            rank._configure(setup)
            metrics, nonfinite = rank.update(batch, TRAJECTORIES, *references)
            assert (metrics["policy/updates_applied"], nonfinite) == (setup.passes, []), overrides


def test_a_policy_serves_other_roles(tiny: Path) -> None:
    """Weights as IPC handles and as parts on the CPU; the adapter, and scores without it."""
    overrides = ["learner.lora.rank=4", "weights.verify=true", "weights.bucket_mib=1"]
    config = load_config([*TWO_RANKS, "algorithm.kl.coef=0", *overrides])
    with FakeGpu():
        rank = PolicyRank(0, PolicySetup.from_config(config, str(tiny), 64))
        start(rank)
        info, sums = rank.export_weights()
        assert [list(handle) for handle in info["handles"]] == [["GPU-imaginary"]] * len(sums)
        is_last, part = rank.read_weights(0)
        _, adapter = rank.read_adapter()
        places = [[(0, 0), (0, 1)], [(0, 2), (0, 3)]]
        _, _, *scores = rank.reference([0, 1], places, TRAJECTORIES)
    assert is_last
    assert {tensor.device.type for tensor in part.values()} == {"cpu"}
    assert adapter.file.nbytes > 0
    assert [[len(row) for row in group] for group in scores] == [[7, 9], [8, 5]]


def test_a_critic_makes_a_step(tiny: Path) -> None:
    config = load_config([*TWO_RANKS, "algorithm.kl.coef=0", "algorithm.advantage.name=gae"])
    with FakeGpu():
        rank = CriticRank(0, CriticSetup.from_config(config, str(tiny), 64))
        start(rank)
        rewards = [[1.0, 0.0], [0.5, 0.5]]
        _, *estimates = rank.estimate(rewards, rank_batch(), TRAJECTORIES)
        metrics, _ = rank.update(rank_batch(has_estimates=True), TRAJECTORIES, *estimates)
    assert metrics["critic/not_applied"] == 0.0
    assert [len(group) for group in estimates] == [2, 2]
