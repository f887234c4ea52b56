"""Ranks of a small model that save and load each other's checkpoints, run by `test_other_ranks.py`.

Every process group makes all ZeRO stages and dtypes one after the other, since its start takes most of the time.
"""

from __future__ import annotations

import gc
import itertools
import json
import multiprocessing
import os
import socket
import sys
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from rlsys.config.compose import load_config
from rlsys.learner.engine import build_engine
from rlsys.learner.rank import Rank
from rlsys.run_folder.resume import ALIKE

STAGES = range(4)
State = dict[str, list[torch.Tensor]]  # by parameter: its value in float32, and both moments of Adam


class Small(nn.Module):
    """A model with matrices, a norm and biases: two groups of the optimizer."""

    layout = "padded"

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.inner = nn.Embedding(11, 7), nn.Linear(7, 5)
        self.norm, self.outer = nn.LayerNorm(5), nn.Linear(5, 3, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.outer(self.norm(self.inner(self.embedding(tokens))))
        return logits.logsumexp(-1).sum()


class SmallRank(Rank):
    """A rank of the small model, without Ray."""

    def build(self) -> SmallRank:
        """Build the engine in the process group that is there."""
        torch.manual_seed(self._seed)
        model = Small().to(getattr(torch, self._config.dtype))
        self._engine = build_engine(self._config, model, self._world_size, self._num_updates)
        return self

    def update(self, number: int) -> None:
        """Make an update that is the same for any number of ranks."""
        tokens = torch.randint(0, 11, (6, 4), generator=torch.Generator().manual_seed(number))
        self._backward(self._engine(tokens[self._rank :: self._world_size]) / 24)
        assert self._step().is_applied

    def save_whole(self, folder: str) -> None:
        """Save, and wait until it is written."""
        self.save(folder, is_late=False)
        while self.saved() is None:
            time.sleep(0.01)
        assert self.saved() == []
        dist.barrier()

    def state(self) -> tuple[State, list[float]]:
        """Return parameters and moments, and the steps that the optimizer has counted."""
        optimizer = self._engine.optimizer
        inner = getattr(optimizer, "optimizer", optimizer)
        if hasattr(optimizer, "_lazy_init_hp_params_optimizer_state"):
            # DeepSpeed does it within the first step, when only the first group has a state.
            optimizer._hp_optimizer_states_linked = False
            optimizer._lazy_init_hp_params_optimizer_state()
        found = {name: self._values(p, inner) for name, p in self._engine.module.named_parameters()}
        return found, sorted({float(state["step"]) for state in inner.state.values()})

    def _values(self, parameter: nn.Parameter, inner: Any) -> list[torch.Tensor]:
        from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state

        moments = ("exp_avg", "exp_avg_sq")
        if self._config.zero_stage > 0:
            values = [safe_get_full_fp32_param(parameter)]
            values += [safe_get_full_optimizer_state(parameter, moment) for moment in moments]
        else:
            pairs = zip(
                itertools.chain(*getattr(self._engine.optimizer, "fp16_groups", [])),
                itertools.chain(*getattr(self._engine.optimizer, "fp32_groups", [])),
                strict=True,
            )
            precise = next((fp32 for bf16, fp32 in pairs if bf16 is parameter), parameter)
            values = [precise, *(inner.state[precise][moment] for moment in moments)]
        return [value.detach().float().clone() for value in values]


def small_rank(rank: int, ranks: int, dtype: str, stage: int) -> SmallRank:
    options = [f"learner.{k}={v}" for k, v in {"dtype": dtype, "zero_stage": stage, "num_workers": ranks}.items()]
    config = load_config(["experiment=quickstart", "learner.lr=1e-2", "learner.lr_schedule=linear", *options])
    return SmallRank(rank, config.learner, 100, 0).build()


def save_all(rank: int, ranks: int, dtype: str, root: Path) -> None:
    """Save every stage, converted too, with the state then and after one more update."""
    for stage in STAGES:
        made, folder = small_rank(rank, ranks, dtype, stage), root / f"{dtype}-{stage}-{ranks}"
        made.update(1)
        made.update(2)
        if rank == 0:
            folder.mkdir()
        dist.barrier()
        made.save_whole(str(folder))
        then = made.state()
        made.update(3)
        later = made.state()
        if rank == 0:
            torch.save((then, later), folder / "state.pt")
            if stage > 0:
                made.convert(str(folder), str(folder / "converted"))
        dist.barrier()


def load_all(rank: int, ranks: int, dtype: str, root: Path) -> None:
    """Load what every number of ranks saved, wherever it can be; write how far the states are apart."""
    apart = {}
    for folder, stage in itertools.product(sorted(root.glob(f"{dtype}-*-*")), STAGES):
        before = int(folder.name.split("-")[1])
        if not is_alike(before, stage):
            continue
        made = small_rank(rank, ranks, dtype, stage)
        made.update(9)  # a state of its own, of which nothing may be left
        made.load(str(folder / "converted" if before > 0 else folder), is_converted=before > 0)
        found, (then, later) = made.state(), torch.load(folder / "state.pt")
        made.update(3)
        apart[f"{folder.name} to {stage}"] = [*differences(found, then), *differences(made.state(), later)]
        del made
        gc.collect()
    if rank == 0:
        (root / f"apart-{ranks}.json").write_text(json.dumps(apart))


def refuse_all(rank: int, ranks: int, dtype: str, root: Path) -> None:
    """Check that DeepSpeed loads nothing between other stages."""
    for before, stage in itertools.product(STAGES, STAGES):
        if is_alike(before, stage):
            continue
        made, folder = small_rank(rank, ranks, dtype, stage), root / f"{dtype}-{before}-{ranks}"
        try:
            made.load(str(folder / "converted" if before > 0 else folder), is_converted=before > 0)
        except Exception:
            continue
        raise AssertionError(f"a checkpoint of ZeRO-{before} was loaded by ZeRO-{stage}")


def is_alike(before: int, stage: int) -> bool:
    return any(before in stages and stage in stages for stages in ALIKE)


def differences(found: tuple[State, list[float]], expected: tuple[State, list[float]]) -> tuple[float, bool]:
    """Return the largest difference of a value, as a share of its tensor's largest; and whether the steps agree."""
    pairs = ((a, b) for name in expected[0] for a, b in zip(found[0][name], expected[0][name], strict=True))
    return max(float((a - b).abs().max() / b.abs().max()) for a, b in pairs), found[1] == expected[1]


def work(rank: int, ranks: int, port: int, command: str, dtype: str, root: Path) -> None:
    import deepspeed

    torch.set_num_threads(1)
    os.environ.update(RANK=str(rank), LOCAL_RANK="0", WORLD_SIZE=str(ranks), MASTER_ADDR="127.0.0.1")
    os.environ["MASTER_PORT"] = str(port)
    deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    dist.init_process_group("gloo")
    deepspeed.init_distributed(dist_backend="gloo")
    {"save": save_all, "load": load_all, "refuse": refuse_all}[command](rank, ranks, dtype, root)
    dist.destroy_process_group()


def main(command: str, dtype: str, ranks: int, root: Path) -> int:
    """Run a command on all ranks; return 1 if one of them failed."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=work, args=(rank, ranks, port, command, dtype, root)) for rank in range(ranks)]
    for process in started:
        process.start()
    while any(process.is_alive() for process in started):
        if any(process.exitcode for process in started):  # the others wait for it
            for process in started:
                process.kill()
        time.sleep(0.05)
    return int(any(process.exitcode for process in started))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], sys.argv[2], int(sys.argv[3]), Path(sys.argv[4])))
