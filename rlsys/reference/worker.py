"""One reference worker."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from rlsys.algorithms import kl
from rlsys.config.learner_schema import ReferenceConfig
from rlsys.config.schema import Config
from rlsys.models.device import device_name
from rlsys.models.divergence import kl_sums
from rlsys.models.packing import TokenRow, microbatches, token_batch
from rlsys.models.policy import DTYPES, load_policy
from rlsys.run_folder.layout import REFERENCE
from rlsys.run_folder.room import naming_full_disk
from rlsys.runtime.chunks import ChunkIndex, pick
from rlsys.runtime.garbage import freeze_started
from rlsys.runtime.logs import log_worker
from rlsys.runtime.spans import Span, SpanRecorder
from rlsys.types import Trajectory
from rlsys.weights.manifest import Entry, buckets

# Of the parameters that one worker gives another: the object store never holds the whole reference.
PART_BYTES = 256 * 2**20

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ReferenceSetup:
    """The part of the configuration that a reference worker needs."""

    reference: ReferenceConfig
    model_path: str
    max_tokens: int  # length of the longest trajectory, the engines' context
    dtype: str
    temperature: float
    divergence: str | None  # the KL estimator when the KL belongs in the reward; only then are its sums needed
    trust_remote_code: bool

    @classmethod
    def from_config(cls, config: Config, model_path: str, max_tokens: int) -> ReferenceSetup:
        """Build it from the run's configuration, the resolved model folder or hub id, and the longest trajectory."""
        penalty = config.algorithm.kl
        return cls(
            reference=replace(config.reference, deadline_s=config.reference.deadline_s * config.deadline_factor),
            model_path=model_path,
            max_tokens=max_tokens,
            dtype=config.learner.dtype,
            temperature=config.rollout.temperature,
            divergence=penalty.name if penalty.apply_to == "reward" else None,
            trust_remote_code=config.model.trust_remote_code,
        )


class ReferenceWorker:
    """A Ray worker that holds the policy as it was before training, or as the last refresh left it."""

    def __init__(self, setup: ReferenceSetup) -> None:
        log_worker()
        self._config = setup.reference
        self._dtype = setup.dtype
        self._temperature = setup.temperature
        self._divergence = kl.registry.get(setup.divergence) if setup.divergence is not None else None
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        policy = load_policy(
            setup.model_path,
            DTYPES[setup.dtype],
            max_tokens=setup.max_tokens,
            packing=setup.reference.packing,
            trust_remote_code=setup.trust_remote_code,
        )
        self._policy = policy.to(self._device).requires_grad_(False)
        self._precise: dict[str, torch.Tensor] = {}  # float32 values of parameters that are rounded
        self._staged: dict[str, torch.Tensor] = {}
        self._spans = SpanRecorder()
        freeze_started()
        logger.info("reference ready: %s in %s on %s", setup.model_path, setup.dtype, self._device.type)

    def start(self) -> None:
        """Return once the worker is ready."""

    def placement(self) -> str:
        """Return the layout that the trial allowed, the dtype and the device, for the message after the start."""
        return f"{self._policy.layout} in {self._dtype} on {device_name(self._device)}"

    def logprobs(self, chunk_indices: Sequence[Sequence[ChunkIndex]], *chunks: Sequence[Trajectory]) -> list[Any]:
        """Compute the log-probabilities of whole groups.

        Args:
            chunk_indices: where each group's trajectories are in the chunks.
            *chunks: lists of trajectories.

        Returns: first the divergence from the sampling policy, summed over each response, one list per group (an empty
        list unless the KL belongs in the reward); then per group a list of its trajectories' log-probabilities, [L]
        float32 each, 0 outside the loss mask.
        """
        with self._spans.span("reference"):
            return self._logprobs(pick(chunks, chunk_indices))

    def take_spans(self) -> list[Span]:
        """Return the timeline's spans since the last call."""
        return self._spans.take()

    def _logprobs(self, groups: Sequence[Sequence[Trajectory]]) -> list[Any]:
        trajectories = [trajectory for group in groups for trajectory in group]
        # The group of each trajectory: those of one group share their prompt in the packed row.
        owners = [number for number, group in enumerate(groups) for _ in group]
        token_rows = [TokenRow(t.token_ids, t.loss_mask, g) for g, t in zip(owners, trajectories, strict=True)]
        layout = self._policy.layout
        rows: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(trajectories)
        for indices in microbatches(token_rows, self._config.microbatch_tokens, layout):
            batch = token_batch([token_rows[i] for i in indices], layout).to(self._device)
            with torch.inference_mode():
                logprobs, _ = self._policy(batch, self._temperature)  # [B, T]
            found = logprobs.cpu().numpy()
            for row, index in enumerate(indices):
                rows[index] = found[row, : trajectories[index].num_tokens]
        # Microbatches are sorted by size; the rows are back in the order of trajectories here.
        remaining = iter(rows)
        nested = [[next(remaining) for _ in group] for group in groups]
        return [kl_sums(self._divergence, groups, nested) if self._divergence is not None else [], *nested]

    def read(self, number: int) -> tuple[bool, dict[str, torch.Tensor]]:
        """Return whether this is the last part of the parameters, and the part, unrounded and on the CPU."""
        parameters = dict(self._policy.hf.named_parameters())
        entries = [Entry(name, torch.float32, tuple(p.shape)) for name, p in parameters.items()]
        parts = buckets(entries, PART_BYTES)
        part = {name: self._unrounded(name, parameters[name]) for name in (entry.name for entry in parts[number])}
        return number + 1 == len(parts), part

    def stage(self, weights: Mapping[str, torch.Tensor]) -> None:
        """Keep a part of the policy's parameters for `blend`, outside the object store."""
        self._staged |= {name: tensor.clone() for name, tensor in weights.items()}

    def blend(self, alpha: float) -> None:
        """Move every parameter towards the staged ones by the share `alpha`; 1 copies them.

        All at once: no log-probability is of a reference that is half of one step and half of another.
        """
        staged, self._staged = self._staged, {}
        for name, parameter in self._policy.hf.named_parameters():
            # A small step of a bfloat16 weight would round to nothing, so it starts from the value in float32.
            start = self._precise.get(name, parameter.float())
            # From 0.5 on lerp computes end - (end - start) * (1 - alpha): with 1 the end itself, exactly.
            self._set(name, parameter, torch.lerp(start, staged[name].to(start), alpha))

    def save(self, folder: str) -> None:
        """Write the parameters into a checkpoint's folder, unrounded."""
        unrounded = {name: self._unrounded(name, p) for name, p in self._policy.hf.named_parameters()}
        with naming_full_disk(Path(folder) / REFERENCE):
            save_file(unrounded, Path(folder) / REFERENCE)

    def load(self, folder: str) -> None:
        """Restore what `save` wrote."""
        saved = load_file(Path(folder) / REFERENCE)
        for name, parameter in self._policy.hf.named_parameters():
            self._set(name, parameter, saved[name].to(self._device, torch.float32))
        logger.info("restored from %s", folder)

    def _unrounded(self, name: str, parameter: torch.Tensor) -> torch.Tensor:
        return self._precise.get(name, parameter).detach().cpu().contiguous()

    @torch.no_grad()
    def _set(self, name: str, parameter: torch.Tensor, value: torch.Tensor) -> None:
        """Set a parameter to a float32 value, and keep the value itself where the parameter cannot hold it."""
        parameter.copy_(value)
        self._precise.pop(name, None)
        if not torch.equal(parameter.float(), value):
            self._precise[name] = value
