"""One reference worker."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from rlsys.algorithms import kl
from rlsys.config.schema import ReferenceConfig
from rlsys.models.divergence import kl_sums
from rlsys.models.packing import TokenRow, microbatches, token_batch
from rlsys.models.policy import DTYPES, load_policy
from rlsys.runtime.chunks import ChunkIndex, picked
from rlsys.runtime.garbage import freeze_started
from rlsys.runtime.spans import Span, SpanRecorder
from rlsys.types import Trajectory

REFERENCE_FILE = "reference.safetensors"


class ReferenceWorker:
    """Lives in a Ray process; holds the policy as it was before training, or as the last refresh left it."""

    def __init__(
        self,
        config: ReferenceConfig,
        model_path: str,
        dtype: str,
        temperature: float,
        divergence: str | None,
        trust_remote_code: bool,
    ) -> None:
        self._config = config
        self._temperature = temperature
        self._divergence = kl.registry.get(divergence) if divergence is not None else None
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        policy = load_policy(model_path, DTYPES[dtype], packing=config.packing, trust_remote_code=trust_remote_code)
        self._policy = policy.to(self._device).requires_grad_(False)
        self._whole: dict[str, torch.Tensor] = {}
        self._spans = SpanRecorder()
        freeze_started()

    def ping(self) -> None:
        """Answers once the worker is ready."""

    def logprobs(self, places: Sequence[Sequence[ChunkIndex]], *chunks: Sequence[Trajectory]) -> list[Any]:
        """Score the groups whose trajectories lie at `places`.

        Returns: first the divergence of the policy that sampled, summed over each response, a list per group (none
        without a `divergence`: only a KL in the reward reads it); then a list per group of log-probabilities of its
        trajectories, [L] float32 each, 0 outside the loss mask.
        """
        with self._spans.span("reference"):
            return self._logprobs(picked(chunks, places))

    def take_spans(self) -> list[Span]:
        """What this worker did since the last call."""
        return self._spans.take()

    def _logprobs(self, groups: Sequence[Sequence[Trajectory]]) -> list[Any]:
        trajectories = [trajectory for group in groups for trajectory in group]
        owners = [number for number, group in enumerate(groups) for _ in group]
        token_rows = [TokenRow(t.token_ids, t.loss_mask, g) for g, t in zip(owners, trajectories, strict=True)]
        layout = self._policy.layout
        rows: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(trajectories)
        for indices in microbatches(token_rows, self._config.microbatch_tokens, layout):
            batch = token_batch([token_rows[i] for i in indices], layout).to(self._device)
            with torch.inference_mode():
                scores, _ = self._policy(batch, self._temperature)
            found = scores.cpu().numpy()
            for row, index in enumerate(indices):
                rows[index] = found[row, : trajectories[index].num_tokens]
        nested: list[list[np.ndarray]] = []
        for group in groups:
            start = sum(map(len, nested))
            nested.append(rows[start : start + len(group)])
        return [kl_sums(self._divergence, groups, nested) if self._divergence is not None else [], *nested]

    def blend(self, weights: Mapping[str, torch.Tensor], alpha: float) -> None:
        """Move every parameter towards `weights` by the share `alpha`."""
        with torch.no_grad():
            for name, parameter in self._policy.hf.named_parameters():
                # Small steps of bfloat16 weights would round to nothing: their sum is kept in float32.
                whole = self._whole.get(name, parameter.float())
                whole = torch.lerp(whole, weights[name].to(whole), alpha)
                parameter.copy_(whole)
                if parameter.dtype != torch.float32 and alpha < 1.0:
                    self._whole[name] = whole

    def save(self, folder: str) -> None:
        """Write the parameters as `reference.safetensors`."""
        parameters = {name: p.detach().cpu().contiguous() for name, p in self._policy.hf.named_parameters()}
        save_file(parameters, Path(folder) / REFERENCE_FILE)

    def load(self, folder: str) -> None:
        """Restore what `save` wrote."""
        self.blend(load_file(Path(folder) / REFERENCE_FILE), 1.0)
