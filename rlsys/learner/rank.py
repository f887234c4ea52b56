"""One rank of a gang around a DeepSpeed engine: what policy and critic have in common."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

from rlsys.config.schema import LearnerConfig
from rlsys.errors import RlsysError
from rlsys.learner.engine import build_engine, forget_gradients
from rlsys.models.packing import TokenBatch, TokenRow, microbatches, token_batch
from rlsys.runtime.chunks import ChunkIndex, picked
from rlsys.runtime.garbage import freeze_started
from rlsys.runtime.spans import Span, SpanRecorder
from rlsys.types import Coefficients, ExperienceRow, Trajectory, ValueEstimate


@dataclass(frozen=True)
class Share:
    """What one rank trains on in a step: its rows of every minibatch, and what it must know of the others'."""

    minibatches: tuple[tuple[ExperienceRow, ...], ...]
    num_tokens: tuple[int, ...]  # trained tokens of each minibatch, all ranks
    coefficients: Coefficients
    policy_version: int
    places: Sequence[Sequence[ChunkIndex]]  # of every group's trajectories in the chunks
    has_reference: bool
    has_estimates: bool


@dataclass(frozen=True)
class TrainItem:
    """One trajectory with everything its loss needs; arrays [L]."""

    row: ExperienceRow
    trajectory: Trajectory
    ref_logprobs: np.ndarray | None = None
    estimate: ValueEstimate | None = None

    def token_row(self) -> TokenRow:
        """What the model sees of it."""
        return TokenRow(self.trajectory.token_ids, self.trajectory.loss_mask, self.row.group)


ZEROS = np.zeros(2, dtype=np.float32)
NOTHING = TrainItem(
    row=ExperienceRow(-1, 0, 0, 0.0, 0.0, 2, 0),
    trajectory=Trajectory(
        token_ids=np.ones(2, dtype=np.int32),
        loss_mask=np.zeros(2, dtype=bool),
        behavior_logprobs=ZEROS,
        versions=(),
        finish_reason="stop",
        engine=0,
    ),
    ref_logprobs=ZEROS,
    estimate=ValueEstimate(ZEROS, ZEROS, ZEROS),
)
"""Two tokens with nothing to train: what an empty microbatch holds."""


@dataclass(frozen=True)
class StepResult:
    """One optimizer step. `is_applied` is False when the gradient held NaN or infinity: nothing was changed."""

    lr: float
    grad_norm: float
    is_applied: bool


def items_of(share: Share, arrays: Sequence[Any]) -> list[list[TrainItem]]:
    """The share's rows with their arrays: the chunks, then every group's reference, then its estimates, if given."""
    size = len(share.places)
    num_chunks = len(arrays) - size * (share.has_reference + share.has_estimates)
    trajectories = picked(arrays[:num_chunks], share.places)
    references = arrays[num_chunks : num_chunks + size] if share.has_reference else None
    estimates = arrays[len(arrays) - size :] if share.has_estimates else None

    def item(row: ExperienceRow) -> TrainItem:
        return TrainItem(
            row,
            trajectories[row.group][row.sample],
            references[row.group][row.sample] if references is not None else None,
            estimates[row.group][row.sample] if estimates is not None else None,
        )

    return [[item(row) for row in minibatch] for minibatch in share.minibatches]


def mean_metrics(rows: Sequence[dict[str, float]], num_tokens: Sequence[int]) -> dict[str, float]:
    """Of one pass over the minibatches: means weighted by tokens, the largest of a maximum, the last learning rate."""
    total = max(sum(num_tokens), 1)
    combined = {}
    for name in rows[0]:
        values = [row[name] for row in rows]
        if name.endswith("/max"):
            combined[name] = max(values)
        elif name.endswith("/lr"):
            combined[name] = values[-1]
        else:
            combined[name] = sum(value * tokens for value, tokens in zip(values, num_tokens, strict=True)) / total
    return combined


class GangWorker:
    """Lives in a Ray process; the group calls all ranks with the same method at the same time.

    A subclass says what is trained (`_module`) and defines its passes over the data.
    """

    TAG = "learner"
    """Names its part of a checkpoint."""

    def __init__(self, rank: int, config: LearnerConfig, num_updates: int, seed: int) -> None:
        self._rank = rank
        self._config = config
        self._num_updates = num_updates
        self._seed = seed
        self._world_size = config.num_workers
        self._engine: Any = None
        self._spans = SpanRecorder()

    def address(self) -> tuple[str, int]:
        """This node's address and a free port."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as probe:
            probe.bind(("", 0))
            return host, probe.getsockname()[1]

    def start(self, host: str, port: int) -> Any:
        """Join the gang and build the engine."""
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
        torch.manual_seed(self._seed)
        self._engine = build_engine(self._config, self._module(), self._world_size, self._num_updates)
        started = self._started()
        freeze_started()
        return started

    def save(self, folder: str) -> None:
        """Write the DeepSpeed state."""
        has_adapters = self._config.lora.rank > 0
        self._engine.save_checkpoint(folder, tag=self.TAG, save_latest=False, exclude_frozen_parameters=has_adapters)

    def load(self, folder: str) -> None:
        """Restore what `save` wrote."""
        path, _ = self._engine.load_checkpoint(folder, tag=self.TAG, load_module_strict=self._config.lora.rank == 0)
        if path is None:
            raise RlsysError(f"{folder} holds no {self.TAG} checkpoint that {self._world_size} rank(s) can load")

    def take_spans(self) -> list[Span]:
        """What this rank did since the last call."""
        return self._spans.take()

    def stop(self) -> None:
        """Leave the gang: an interpreter that ends inside a process group can abort."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _module(self) -> nn.Module:
        raise NotImplementedError

    def _started(self) -> Any:
        """What `start` answers."""

    def _microbatches(self, items: Sequence[TrainItem]) -> list[list[TrainItem]]:
        """What goes through one forward together; as many lists on every rank, empty ones last.

        Under ZeRO-3 every forward is a collective: a rank with less to do runs empty ones until all are done.
        """
        rows = [item.token_row() for item in items]
        split = microbatches(rows, self._config.microbatch_tokens, self._engine.module.layout)
        num_empty = self._most(len(split)) - len(split)
        return [[items[index] for index in indices] for indices in split] + [[NOTHING]] * num_empty

    def _batch(self, items: Sequence[TrainItem]) -> TokenBatch:
        """The items' tokens in the model's layout."""
        with self._spans.span("pack"):
            rows = [item.token_row() for item in items]
            return token_batch(rows, self._engine.module.layout).to(self._engine.device)

    def _backward(self, loss: torch.Tensor, *, is_finite: bool = True) -> None:
        """Add the gradient of this rank's share of a global sum.

        DeepSpeed averages over ranks, hence the factor. It refuses a step whose gradient norm is not finite: with what
        was not finite before, the gradient is spoiled on purpose, wherever a mask or a clip has hidden it.
        """
        scale = self._world_size if is_finite else float("nan")
        with self._spans.span("backward"):
            self._engine.backward(loss * scale)

    def _step(self) -> StepResult:
        lr = float(self._engine.get_lr()[0])
        with self._spans.span("optimizer"):
            self._engine.step()
        norm = self._engine.get_global_grad_norm()
        # DeepSpeed's own sign of a norm that is not finite is -1 or infinity.
        found = float("nan") if norm is None else float(norm)
        is_applied = 0.0 <= found < float("inf")
        if not is_applied:
            forget_gradients(self._engine)
        return StepResult(lr, found, is_applied)

    def _reduced(self, values: Mapping[str, float], op: Any = dist.ReduceOp.SUM) -> dict[str, float]:
        """`values` reduced over all ranks, which must have the same keys."""
        if not values:
            return {}
        names = sorted(values)
        vector = torch.tensor([values[name] for name in names], dtype=torch.float64, device=self._engine.device)
        dist.all_reduce(vector, op=op)
        return dict(zip(names, vector.tolist(), strict=True))

    def _gathered(self, value: Any) -> list[Any]:
        """Every rank's value, in the order of ranks."""
        gathered: list[Any] = [None] * self._world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def _most(self, count: int) -> int:
        """The largest `count` of all ranks."""
        return int(self._reduced({"count": count}, dist.ReduceOp.MAX)["count"])
