"""One rank of a group around a DeepSpeed engine: the part that policy and critic have in common."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rlsys.config.learner_schema import LearnerConfig
from rlsys.errors import RlsysError
from rlsys.learner.engine import build_engine, forget_gradients, keep_options
from rlsys.learner.rank_batch import EMPTY_ITEM, TrainItem
from rlsys.learner.saving import Failure, Writing
from rlsys.learner.universal import convert, loading_converted
from rlsys.models.device import device_name
from rlsys.models.packing import TokenBatch, microbatches, token_batch
from rlsys.runtime.fork_server import without_mlflow
from rlsys.runtime.garbage import freeze_started
from rlsys.runtime.logs import log_worker
from rlsys.runtime.meeting import meeting_store
from rlsys.runtime.spans import Span, SpanRecorder

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class StepResult:
    """One optimizer step. `is_applied` is False when the gradient held NaN or infinity; then no weight was changed."""

    lr: float
    grad_norm: float
    is_applied: bool


def mean_metrics(rows: Sequence[dict[str, float]], num_tokens: Sequence[int]) -> dict[str, float]:
    """Combine the metrics of one pass over the minibatches.

    Args:
        rows: each minibatch's metrics.
        num_tokens: trained tokens of each minibatch.

    Returns: means weighted by tokens, but the largest of keys that end in /max and the last of those in /lr.
    """
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


class Rank:
    """A Ray worker; the group calls all its ranks with the same method at the same time.

    A subclass builds the model (`_build_model`) and defines its passes over the data. All ranks must reach the same
    collectives (gathers, reductions, and under ZeRO-3 every forward and backward) in the same order; otherwise they
    wait for each other until the deadline.
    """

    TAG = "learner"  # names this role's part of a checkpoint

    def __init__(self, rank: int, config: LearnerConfig, num_updates: int, seed: int) -> None:
        log_worker()
        self._rank = rank
        self._config = config
        self._num_updates = num_updates
        self._seed = seed
        self._world_size = config.num_workers
        self._engine: Any = None  # built by `start`, once all ranks have joined
        self._spans = SpanRecorder()
        self._writing: Writing | None = None  # the last checkpoint, perhaps still being written

    def address(self) -> tuple[str, int]:
        """Return this node's address and a free port."""
        import ray

        host = ray.util.get_node_ip_address()
        with socket.socket() as listener:
            listener.bind(("", 0))
            return host, listener.getsockname()[1]

    def start(self, host: str, port: int) -> Any:
        """Join the process group that meets at rank 0's address, and build the engine."""
        os.environ.update(
            RANK=str(self._rank),
            LOCAL_RANK="0",  # Ray shows each worker its own GPU only, as device 0
            WORLD_SIZE=str(self._world_size),
            MASTER_ADDR=host,
            MASTER_PORT=str(port),
        )
        with without_mlflow():
            import deepspeed
        from deepspeed.constants import default_pg_timeout

        # DeepSpeed would compile a shared-memory collective with g++ at run time; gloo does the same without it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        on_gpu = torch.cuda.is_available() and os.environ.get("DS_ACCELERATOR") != "cpu"
        backend = "nccl" if on_gpu else "gloo"
        store = meeting_store(host, port, self._world_size, is_master=self._rank == 0, timeout=default_pg_timeout)
        dist.init_process_group(
            backend,
            store=store,
            timeout=default_pg_timeout,
            rank=self._rank,
            world_size=self._world_size,
            device_id=torch.device("cuda", 0) if on_gpu and self._world_size > 1 else None,  # as DeepSpeed would
        )
        deepspeed.init_distributed(dist_backend=backend)  # takes the group that is there
        # For a fresh adapter's weights and its dropout. DeepSpeed then sends rank 0's weights to all ranks.
        torch.manual_seed(self._seed)
        self._engine = build_engine(self._config, self._build_model(), self._world_size, self._num_updates)
        result = self._on_started()
        freeze_started()
        logger.info(
            "%s ready: rank %d of %d, ZeRO stage %d, %s",
            self.TAG,
            self._rank,
            self._world_size,
            self._config.zero_stage,
            self._config.dtype,
        )
        return result

    def placement(self) -> str:
        """Return the layout that the trial allowed, the dtype and the device, for the message after the start."""
        layout, device = self._engine.module.layout, torch.device(self._engine.device)
        return f"{layout} in {self._config.dtype} on {device_name(device)}"

    def check_sees(self, file: str) -> None:
        """Raise RlsysError unless this rank sees a file that the driver has written."""
        if not Path(file).is_file():
            raise RlsysError(
                f"{self.TAG}/{self._rank} on {socket.gethostname()} does not see {Path(file).parent}, where "
                "checkpoints go: set run_dir to a folder on a file system that all nodes share"
            )

    def save(self, folder: str, is_late: bool) -> None:
        """Write this rank's part of a checkpoint into a folder that exists; a collective. `saved` has the outcome.

        With `is_late` a thread copies the part into host memory and writes it while training goes on. The next
        optimizer step waits for the copy.
        """
        if self._writing is not None:
            self._writing.wait()  # host memory holds one copy at most
        writing = self._writing = Writing(f"{self.TAG}/{self._rank}", is_late=is_late)
        with writing.file(folder):
            if not Path(folder).is_dir():
                raise RlsysError(f"{folder} is not there: set run_dir to a folder that all nodes share")
        writing.check()
        # Frozen weights are those of `model.path`: a checkpoint leaves them out, and `load` does not expect them.
        has_adapters = self._config.lora.rank > 0
        with writing.deepspeed(self._engine):
            self._engine.save_checkpoint(
                folder, tag=self.TAG, save_latest=False, exclude_frozen_parameters=has_adapters
            )
        self._add_model(folder, writing)
        writing.start()
        logger.info("%s %s", "being written to" if is_late else "written to", folder)

    def saved(self) -> list[Failure] | None:
        """Return what failed in the last `save`, once this rank's files are written; None until then."""
        return [] if self._writing is None else self._writing.found()

    def _add_model(self, folder: str, writing: Writing) -> None:
        """Add what others than DeepSpeed load to what is written; a collective."""

    def convert(self, folder: str, target: str) -> None:
        """Write what another number of ranks, or another ZeRO stage, saved to `folder` so that any can load it."""
        convert(Path(folder) / self.TAG, Path(target) / self.TAG)

    def load(self, folder: str, is_converted: bool = False) -> None:
        """Restore what `save` or `convert` wrote, but for the optimizer's options, which are the configured ones.

        Raises RlsysError when the folder holds nothing for this role and group size.
        """
        self._wait_for_copy()
        form = loading_converted(self._engine) if is_converted else nullcontext()
        with form, keep_options(self._engine):
            path, _ = self._engine.load_checkpoint(folder, tag=self.TAG, load_module_strict=self._config.lora.rank == 0)
        if path is None:
            raise RlsysError(f"{folder} holds no {self.TAG} checkpoint that {self._world_size} rank(s) can load")
        logger.info("restored from %s", folder)

    def take_spans(self) -> list[Span]:
        """Return the timeline's spans since the last call."""
        return self._spans.take()

    def stop(self) -> None:
        """Leave the process group: an interpreter that exits inside one can abort."""
        if dist.is_initialized():
            dist.destroy_process_group()

    def _build_model(self) -> nn.Module:
        """Return the model to train; it has a `layout`."""
        raise NotImplementedError

    def _on_started(self) -> Any:
        """Finish the start, once the engine exists; return the result of `start`."""

    def _microbatches(self, items: Sequence[TrainItem]) -> list[list[TrainItem]]:
        """Divide items over forwards; every rank gets the same number of them, with empty ones last.

        Under ZeRO-3 every forward is a collective, so a rank with less to do runs empty ones until all are done.
        """
        rows = [item.token_row() for item in items]
        split = microbatches(rows, self._config.microbatch_tokens, self._engine.module.layout)
        num_empty = self._max_over_ranks(len(split)) - len(split)
        return [[items[index] for index in indices] for indices in split] + [[EMPTY_ITEM]] * num_empty

    def _batch(self, items: Sequence[TrainItem]) -> TokenBatch:
        """Lay out the items' tokens as the model's input."""
        with self._spans.span("pack"):
            rows = [item.token_row() for item in items]
            return token_batch(rows, self._engine.module.layout).to(self._engine.device)

    def _backward(self, loss: torch.Tensor, *, is_finite: bool = True) -> None:
        """Add the gradient of `loss`, which is this rank's part of a sum over all ranks.

        DeepSpeed averages gradients over ranks, hence the factor `world_size`. It refuses a step whose gradient norm is
        not finite. A mask or a clip may have hidden the NaN or infinity of an input, so with `is_finite=False` the
        gradient is made NaN on purpose.
        """
        scale = self._world_size if is_finite else float("nan")
        with self._spans.span("backward"):
            self._engine.backward(loss * scale)

    def _step(self) -> StepResult:
        """Apply the accumulated gradient, unless it is not finite."""
        self._wait_for_copy()
        lr = float(self._engine.get_lr()[0])  # before the step, which advances the schedule
        with self._spans.span("optimizer"):
            self._engine.step()
        norm = self._engine.get_global_grad_norm()
        # DeepSpeed reports a norm that is not finite as -1 or infinity.
        grad_norm = float("nan") if norm is None else float(norm)
        is_applied = 0.0 <= grad_norm < float("inf")
        if not is_applied:
            logger.warning("an optimizer step was not applied: its gradient's norm is %s", norm)
            forget_gradients(self._engine)
        return StepResult(lr, grad_norm, is_applied)

    def _wait_for_copy(self) -> None:
        """Wait until the last checkpoint holds nothing that is about to change."""
        if self._writing is not None and self._writing.is_copying():
            with self._spans.span("copy"):
                self._writing.wait_for_copy()

    def _all_reduce(self, values: Mapping[str, float], op: Any = dist.ReduceOp.SUM) -> dict[str, float]:
        """Reduce `values` over all ranks, which must have the same keys."""
        if not values:
            return {}
        names = sorted(values)  # the same order on every rank
        vector = torch.tensor([values[name] for name in names], dtype=torch.float64, device=self._engine.device)
        dist.all_reduce(vector, op=op)
        return dict(zip(names, vector.tolist(), strict=True))

    def _all_gather(self, value: Any) -> list[Any]:
        """Return every rank's value, in the order of ranks."""
        gathered: list[Any] = [None] * self._world_size
        dist.all_gather_object(gathered, value)
        return gathered

    def _max_over_ranks(self, count: int) -> int:
        """Return the largest `count` of all ranks."""
        return int(self._all_reduce({"count": count}, dist.ReduceOp.MAX)["count"])
