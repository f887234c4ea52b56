"""One process that computes a dumped step again: the work of all ranks, one after the other."""

from __future__ import annotations

import contextlib
import socket
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import OmegaConf
from torch import nn

from rlsys.errors import DataError
from rlsys.learner.policy_rank import PolicyRank, StepData, UpdateSums
from rlsys.learner.rank_batch import EMPTY_ITEM, TrainItem
from rlsys.learner.setup import PolicySetup
from rlsys.learner.step_dump import StepRecord, StepRecorder, dumped_batch, dumped_items

LOOPBACK = "127.0.0.1"


class ReplayRank(PolicyRank):
    """A policy rank that is alone in its group and holds the items of all ranks of a dumped step."""

    def __init__(
        self, record: dict[str, Any], arrays: Sequence[dict[str, np.ndarray]], checkpoint: Path | None
    ) -> None:
        """Prepare for `replay`.

        Args:
            record: the step's record, as `read_dump` returns it.
            arrays: the arrays of each rank.
            checkpoint: the checkpoint before the step; None where the run began with it.
        """
        setup = setup_from_json(record["setup"])
        self._num_ranks = setup.learner.num_workers
        by_rank = [dumped_items(of_rank) for of_rank in arrays]
        # The ranks' shares of each minibatch one after the other.
        minibatches = [[item for share in shares for item in share] for shares in zip(*by_rank, strict=True)]
        if self._num_ranks > 1:
            # Under ZeRO-3 the weights could not be put into the model before DeepSpeed divides it. Stage 1 rounds
            # gradients as stages 2 and 3 do.
            stage = min(setup.learner.zero_stage, 1)
            setup = replace(setup, passes=1, learner=replace(setup.learner, num_workers=1, zero_stage=stage))
            minibatches = minibatches[:1]
        super().__init__(0, setup)
        self._checkpoint = checkpoint
        self._rank_of = {item.row.index: rank for rank, of in enumerate(by_rank) for part in of for item in part}
        self._random = [torch.from_numpy(of_rank["random"]) for of_rank in arrays]
        self._drawing = -1  # the rank whose random numbers are drawn
        self._data = StepData(dumped_batch(record, len(minibatches)), minibatches)

    def replay(self) -> StepRecord:
        """Compute the step's updates.

        With several ranks only the first: the next ones begin with weights that an optimizer has changed, whose state
        one process cannot take over from several.
        """
        self.start(*self._own_address())
        if self._checkpoint is not None and self._num_ranks == 1:
            self.load(str(self._checkpoint))
        recorder = StepRecorder(self._engine)
        with recorder.gradients():
            self._make_updates(self._data)
        self.stop()
        return recorder.record(self._data.done)

    def _build_model(self) -> nn.Module:
        model = super()._build_model()
        if self._checkpoint is not None and self._num_ranks > 1:
            has_adapters = self._setup.learner.lora.rank > 0
            missing, unexpected = model.load_state_dict(weights_of_ranks(self._checkpoint, self.TAG), strict=False)
            if unexpected or (missing and not has_adapters):
                raise DataError(f"{self._checkpoint} holds another model: {[*unexpected, *missing][0]} differs")
        return model

    def _microbatches(self, items: Sequence[TrainItem]) -> list[list[TrainItem]]:
        """Divide items as the ranks did, each its own, and leave out the empty microbatches of those with less."""
        shares: list[list[TrainItem]] = [[] for _ in range(self._num_ranks)]
        for item in items:
            shares[self._rank_of[item.row.index]].append(item)
        split = (microbatch for share in shares for microbatch in super(ReplayRank, self)._microbatches(share))
        return [microbatch for microbatch in split if microbatch[0] is not EMPTY_ITEM]

    def _microbatch(
        self, step: StepData, number: int, items: Sequence[TrainItem], weights: torch.Tensor, sums: UpdateSums
    ) -> None:
        """Do what a rank did, with its random numbers: they are the dropout of adapters."""
        rank = self._rank_of[items[0].row.index]
        if rank != self._drawing:
            torch.set_rng_state(self._random[rank])
            self._drawing = rank
        super()._microbatch(step, number, items, weights, sums)

    def _verify(self, step: StepData, minibatches: Sequence[Sequence[TrainItem]]) -> dict[str, float]:
        """Compare with no engine: the step has been trained, whatever they had to say."""
        return {}

    def _own_address(self) -> tuple[str, int]:
        with socket.socket() as listener:
            listener.bind((LOOPBACK, 0))
            return LOOPBACK, int(listener.getsockname()[1])


def setup_from_json(values: dict[str, Any]) -> PolicySetup:
    """Return the setup that `asdict` turned into plain values."""
    setup = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(PolicySetup), values))
    assert isinstance(setup, PolicySetup)
    return setup


def weights_of_ranks(checkpoint: Path, tag: str) -> dict[str, torch.Tensor]:
    """Return the trained weights that several ranks have saved, in the precision that the optimizer has them in."""
    whole = checkpoint / tag / "mp_rank_00_model_states.pt"
    if any((checkpoint / tag).glob("*zero_pp_rank_*")):
        from deepspeed.utils.zero_to_fp32 import get_fp32_state_dict_from_zero_checkpoint

        with contextlib.redirect_stdout(sys.stderr):  # DeepSpeed prints its progress
            return dict(get_fp32_state_dict_from_zero_checkpoint(str(checkpoint), tag, exclude_frozen_parameters=True))
    return dict(torch.load(whole, map_location="cpu", weights_only=False)["module"])  # without ZeRO each has all
