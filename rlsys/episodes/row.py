"""The tokens of an episode while it is played: what was sampled, and between it what the environment said."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from rlsys.types import EpisodeRecord, PolicyTurn, Trajectory, VersionSpan


class Row:
    """A trajectory that grows turn by turn; ids that were sampled stay as they are."""

    def __init__(self, opening: np.ndarray) -> None:
        """Begin with the ids before the policy's first message, [L] int32."""
        self._parts = [opening]
        self._masks = [np.zeros(len(opening), dtype=bool)]
        self._logprobs = [np.zeros(len(opening), dtype=np.float32)]
        self._versions: list[VersionSpan] = []
        self._last: Trajectory | None = None
        self.length = len(opening)
        self.num_sampled = 0
        self.turns: list[PolicyTurn] = []

    @property
    def ids(self) -> np.ndarray:
        """All ids so far, [L] int32."""
        self._parts = [np.concatenate(self._parts)]
        return self._parts[0]

    def add_sampled(self, sampled: Trajectory, engine_s: float) -> None:
        """Append a turn of the policy."""
        start = self.length
        shifted = (VersionSpan(s.policy_version, s.start + start, s.end + start) for s in sampled.versions)
        self._versions += shifted
        self._append(sampled.token_ids, sampled.loss_mask, sampled.behavior_logprobs)
        self.num_sampled += sampled.num_tokens
        self.turns.append(PolicyTurn(start, self.length, None, engine_s, 0.0))
        self._last = sampled

    def add_given(self, ids: np.ndarray) -> None:
        """Append ids that the environment gave, and that are not trained."""
        self._append(ids, np.zeros(len(ids), dtype=bool), np.zeros(len(ids), dtype=np.float32))

    def note_answer(self, reward: float | None, environment_s: float) -> None:
        """Record what the environment made of the last turn."""
        self.turns[-1] = replace(self.turns[-1], reward=reward, environment_s=environment_s)

    def trajectory(self, episode: EpisodeRecord) -> Trajectory:
        """Return the episode's trajectory; without a sampled turn it has nothing to train."""
        last = self._last
        return Trajectory(
            token_ids=self.ids,
            loss_mask=np.concatenate(self._masks),
            behavior_logprobs=np.concatenate(self._logprobs),
            versions=tuple(self._versions),
            # What was cut off is truncated, as a response alone that has reached its limit.
            finish_reason="length" if episode.end in ("max_tokens", "context_overflow") else "stop",
            engine=-1 if last is None else last.engine,
            episode=episode,
        )

    def _append(self, ids: np.ndarray, mask: np.ndarray, logprobs: np.ndarray) -> None:
        self._parts.append(ids)
        self._masks.append(mask)
        self._logprobs.append(logprobs)
        self.length += len(ids)
