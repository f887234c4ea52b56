"""One learner rank."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from rlsys.algorithms.loss import Objective
from rlsys.algorithms.policy_losses import LossInputs
from rlsys.batch import pad, split_microbatches, token_batch
from rlsys.config import AlgorithmConfig, LearnerConfig, WeightsConfig
from rlsys.errors import RlsysError
from rlsys.models.resolve import load_tokenizer
from rlsys.runtime.garbage import freeze_started
from rlsys.types import LossTotals, Trajectory
from rlsys.weights.sender import WeightSender, full_state
from rlsys.weights.verify import DEFAULT_BOUNDS, LogprobDiff, check, diff_of, merge


@dataclass(frozen=True)
class LearnerSetup:
    """What a learner rank needs of the run's configuration."""

    learner: LearnerConfig
    algorithm: AlgorithmConfig
    weights: WeightsConfig
    model_path: str
    trust_remote_code: bool
    engine_dtype: str
    temperature: float
    num_steps: int
    updates_per_step: int
    num_engines: int
    seed: int


@dataclass(frozen=True)
class TrainItem:
    """One trajectory with everything its loss needs; arrays [L]."""

    trajectory: Trajectory
    advantage: float
    ref_logprobs: np.ndarray | None


EMPTY = -1
NOTHING = TrainItem(
    trajectory=Trajectory(
        token_ids=np.ones(2, dtype=np.int32),
        loss_mask=np.zeros(2, dtype=bool),
        behavior_logprobs=np.zeros(2, dtype=np.float32),
        versions=(),
        finish_reason="stop",
        engine=0,
    ),
    advantage=0.0,
    ref_logprobs=np.zeros(2, dtype=np.float32),
)
"""Two tokens with nothing to train: what an empty microbatch holds."""


@dataclass
class UpdateSums:
    """Sums over this rank's tokens during one update."""

    loss: float = 0.0
    kl: float = 0.0
    clipped: float = 0.0
    entropy: float = 0.0

    def vector(self) -> list[float]:
        return [self.loss, self.kl, self.clipped, self.entropy]


class LearnerWorker:
    """Lives in a Ray process; the group calls all ranks with the same method at the same time."""

    def __init__(self, rank: int, setup: LearnerSetup) -> None:
        self._rank = rank
        self._setup = setup
        self._world_size = setup.learner.num_workers

    def address(self) -> tuple[str, int]:
        """This node's address and a free port."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind(("", 0))
            return host, probe.getsockname()[1]

    def start(self, host: str, port: int) -> dict[str, Any]:
        """Join the gang and build the engine; returns what rank 0 will send in a broadcast."""
        os.environ.update(
            RANK=str(self._rank),
            LOCAL_RANK="0",
            WORLD_SIZE=str(self._world_size),
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        import deepspeed

        # The g++ shared-memory collective is built at run time; gloo does the same without a compiler.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
        deepspeed.init_distributed(dist_backend="nccl" if on_gpu else "gloo")
        torch.manual_seed(self._setup.seed)
        from rlsys.learner.engine import build_engine

        setup = self._setup
        updates = setup.num_steps * setup.updates_per_step
        self._engine = build_engine(setup.learner, setup.model_path, self._world_size, updates, setup.trust_remote_code)
        self._objective = Objective(setup.algorithm)
        from rlsys.models.policy import DTYPES

        self._sender = WeightSender(
            self._engine.module.hf, DTYPES[setup.engine_dtype], self._rank, setup.weights.bucket_mib * 2**20
        )
        freeze_started()
        return self._sender.update_info()

    def open_weights(self, backend: str, host: str, port: int, world_size: int) -> None:
        """Join the weight group (rank 0)."""
        self._sender.open(backend, host, port, world_size, self._setup.weights.deadline_s)

    def send_weights(self) -> None:
        """Gather and broadcast the policy."""
        self._sender.send()

    def export_weights(self) -> dict[str, Any]:
        """CUDA IPC handles of the policy, for engines on the same GPU."""
        return self._sender.export_ipc()

    def update(
        self,
        picks: Sequence[tuple[int, int, float]],
        totals: LossTotals,
        policy_version: int,
        num_groups: int,
        *arrays: Any,
    ) -> dict[str, float]:
        """One step's optimizer updates on this rank's share.

        Args:
            picks: (group, sample, advantage) of each trajectory of this rank; group indexes `arrays`.
            totals: counts over all ranks, the losses' denominators.
            policy_version: the version being trained, whose engine log-probabilities are verified.
            num_groups: how many of `arrays` are trajectories; as many reference log-probabilities may follow.
        """
        trajectories, ref_logprobs = arrays[:num_groups], arrays[num_groups:]
        items = [
            TrainItem(trajectories[group][sample], advantage, ref_logprobs[group][sample] if ref_logprobs else None)
            for group, sample, advantage in picks
        ]
        metrics: dict[str, float] = {}
        old_logprobs: dict[int, np.ndarray] = {}
        for epoch in range(self._setup.updates_per_step):
            sums = self._accumulate(items, totals, old_logprobs)
            if epoch == 0:
                metrics.update(self._verify(items, old_logprobs, policy_version))
            metrics.update(self._step(sums, totals))
        return metrics

    def save(self, folder: str) -> None:
        """Write the DeepSpeed state and, from rank 0, the policy as a Hugging Face folder `policy/`."""
        self._engine.save_checkpoint(folder, tag="learner", save_latest=False)
        weights = full_state(self._engine.module.hf, self._rank)
        if self._rank == 0:
            target = Path(folder) / "policy"
            self._engine.module.hf.save_pretrained(target, state_dict=weights)
            tokenizer = load_tokenizer(self._setup.model_path, trust_remote_code=self._setup.trust_remote_code)
            tokenizer.save_pretrained(target)

    def load(self, folder: str) -> None:
        """Restore what `save` wrote."""
        path, _ = self._engine.load_checkpoint(folder, tag="learner")
        if path is None:
            raise RlsysError(f"{folder} holds no learner checkpoint that {self._world_size} rank(s) can load")

    def stop(self) -> None:
        """Leave the gang: an interpreter that ends inside a process group can abort."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _accumulate(
        self, items: Sequence[TrainItem], totals: LossTotals, old_logprobs: dict[int, np.ndarray]
    ) -> UpdateSums:
        """Forward and backward of every microbatch. Fills `old_logprobs` (per item, [L]) in the first pass."""
        lengths = [item.trajectory.num_tokens for item in items]
        microbatches = split_microbatches(lengths, self._setup.learner.microbatch_tokens)
        # Under ZeRO-3 every forward is a collective: a rank with less to do runs empty ones until all are done.
        num_empty = self._most(len(microbatches)) - len(microbatches)
        sums = UpdateSums()
        for indices in microbatches + [[EMPTY]] * num_empty:
            chosen = [NOTHING if index == EMPTY else items[index] for index in indices]
            self._microbatch(chosen, indices, totals, old_logprobs, sums)
        return sums

    def _microbatch(
        self,
        items: Sequence[TrainItem],
        indices: Sequence[int],
        totals: LossTotals,
        old_logprobs: dict[int, np.ndarray],
        sums: UpdateSums,
    ) -> None:
        device = self._engine.device
        trajectories = [item.trajectory for item in items]
        batch = token_batch([t.token_ids for t in trajectories], [t.loss_mask for t in trajectories]).to(device)
        logprobs, entropy = self._engine(
            batch.input_ids, batch.attention_mask, batch.loss_mask, self._setup.temperature
        )
        for row, index in enumerate(indices):
            if index not in old_logprobs:
                old_logprobs[index] = logprobs[row, : trajectories[row].num_tokens].detach().cpu().numpy()
        references = [item.ref_logprobs for item in items if item.ref_logprobs is not None]
        advantages = torch.tensor([item.advantage for item in items], device=device)
        inputs = LossInputs(
            logprobs=logprobs,
            old_logprobs=pad([old_logprobs[index] for index in indices], torch.float32).to(device),
            advantages=advantages[:, None].expand(logprobs.shape),
            loss_mask=batch.loss_mask,
            ref_logprobs=pad(references, torch.float32).to(device) if references else None,
        )
        result = self._objective(inputs, totals)
        # DeepSpeed averages gradients over ranks; the loss is already this rank's share of a global sum.
        self._engine.backward(result.loss * self._world_size)
        sums.loss += float(result.loss.detach())
        sums.kl += float(result.kl_sum)
        sums.clipped += float(result.clipped_sum)
        sums.entropy += float(entropy.sum())

    def _verify(
        self, items: Sequence[TrainItem], logprobs: Mapping[int, np.ndarray], policy_version: int
    ) -> dict[str, float]:
        """Compare engine and learner on the tokens that this version sampled, on all ranks together.

        Runs before the optimizer step, so that a wrong broadcast never trains the policy.
        """
        local: dict[int, LogprobDiff] = {}
        for index, item in enumerate(items):
            trajectory = item.trajectory
            same = np.zeros(trajectory.num_tokens, dtype=bool)
            for span in trajectory.versions:
                same[span.start : span.end] = span.policy_version == policy_version
            same &= trajectory.loss_mask
            diff = diff_of(trajectory.behavior_logprobs[same], logprobs[index][same])
            local[trajectory.engine] = local.get(trajectory.engine, LogprobDiff()) + diff
        gathered: list[Any] = [None] * self._world_size
        dist.all_gather_object(gathered, local)
        per_engine = merge(gathered)
        weights = self._setup.weights
        if weights.verify:
            bound = weights.max_logprob_diff
            if bound is None:
                bound = max(DEFAULT_BOUNDS[self._setup.learner.dtype], DEFAULT_BOUNDS[self._setup.engine_dtype])
            check(per_engine, bound=bound, policy_version=policy_version, num_engines=self._setup.num_engines)
        overall = sum(per_engine.values(), LogprobDiff())
        return {"sync/logprob_abs_diff/mean": overall.mean, "sync/logprob_abs_diff/max": overall.largest}

    def _step(self, sums: UpdateSums, totals: LossTotals) -> dict[str, float]:
        lr = self._engine.get_lr()[0]
        self._engine.step()
        reduced = torch.tensor(sums.vector(), dtype=torch.float64, device=self._engine.device)
        dist.all_reduce(reduced)
        loss, kl, clipped, entropy = reduced.tolist()
        tokens = max(totals.num_tokens, 1)
        norm = self._engine.get_global_grad_norm()
        metrics = {
            "policy/loss": loss,
            "policy/entropy": entropy / tokens,
            "policy/clip_fraction": clipped / tokens,
            "policy/grad_norm": float(norm) if norm is not None else float("nan"),
            "policy/lr": float(lr),
        }
        if self._setup.algorithm.kl.coef > 0:
            metrics["policy/kl_ref"] = kl / tokens
        return metrics

    def _most(self, count: int) -> int:
        """The largest `count` of all ranks."""
        largest = torch.tensor(count, device=self._engine.device)
        dist.all_reduce(largest, op=dist.ReduceOp.MAX)
        return int(largest)
