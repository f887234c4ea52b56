"""One reference worker."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from rlsys.batch import split_microbatches, token_batch
from rlsys.config import ReferenceConfig
from rlsys.models.policy import DTYPES, load_policy
from rlsys.runtime.garbage import freeze_started
from rlsys.types import Trajectory


class ReferenceWorker:
    """Lives in a Ray process; holds the policy as it was before training."""

    def __init__(
        self, config: ReferenceConfig, model_path: str, dtype: str, temperature: float, trust_remote_code: bool
    ) -> None:
        self._config = config
        self._temperature = temperature
        self._device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        policy = load_policy(model_path, DTYPES[dtype], trust_remote_code=trust_remote_code)
        self._policy = policy.to(self._device).requires_grad_(False)
        freeze_started()

    def ping(self) -> None:
        """Answers once the worker is ready."""

    def logprobs(self, *groups: Sequence[Trajectory]) -> list[list[np.ndarray] | None]:
        """None, to wait for, then a list per group: log-probabilities of its trajectories, [L] float32 each, 0 outside
        the loss mask."""
        trajectories = [trajectory for group in groups for trajectory in group]
        rows: list[np.ndarray] = [np.zeros(0, dtype=np.float32)] * len(trajectories)
        lengths = [trajectory.num_tokens for trajectory in trajectories]
        for indices in split_microbatches(lengths, self._config.microbatch_tokens):
            chosen = [trajectories[i] for i in indices]
            batch = token_batch([t.token_ids for t in chosen], [t.loss_mask for t in chosen]).to(self._device)
            with torch.inference_mode():
                scores, _ = self._policy(batch.input_ids, batch.attention_mask, batch.loss_mask, self._temperature)
            for row, index in enumerate(indices):
                rows[index] = scores[row, : lengths[index]].cpu().numpy()
        nested: list[list[np.ndarray] | None] = [None]
        start = 0
        for group in groups:
            nested.append(rows[start : start + len(group)])
            start += len(group)
        return nested
