"""Engines against learner after every broadcast: both say how probable the tokens of one fixed text are.

Where sampling runs ahead, what a step trains is of earlier versions, whose weights the learner no longer has. And an
adapter that has not taken effect changes so little at first that trained tokens would not show it. Nobody waits for the
answers; they are compared as they come.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import numpy as np

from rlsys.errors import WeightMismatchError
from rlsys.metrics.step import Metrics
from rlsys.runtime.calls import Calls
from rlsys.weights.verify import LogprobDiff, check_logprobs, diff_of

NUM_TOKENS = 64
"""Of the text: enough to go through every layer many times, little enough to cost nothing."""
NEARER = 0.5
"""Distance to the model without its adapter, over the distance to the policy, below which the adapter is missing."""
OLDEST = 2
"""Versions behind the newest that an answer may still be about; an engine that was busy answers late."""


class ProbedSide(Protocol):
    """The learner group, or the rollout pool."""

    def begin_probe(self, token_ids: np.ndarray) -> dict[str, Any]: ...


@dataclass
class _Version:
    """What has been answered about one version."""

    learned: np.ndarray | None = None  # [L - 1] float32
    bare: np.ndarray | None = None  # the same without the policy's adapter, where it has one
    engines: dict[int, np.ndarray] = field(default_factory=dict)


class Probe:
    """Asks both sides about `token_ids` [L] int32, and keeps what differed until `take`."""

    def __init__(
        self,
        calls: Calls,
        learner: ProbedSide,
        rollout: ProbedSide,
        token_ids: np.ndarray,
        *,
        bound: float | None,
        deadline_s: float,
    ) -> None:
        """`bound` is the largest difference that is accepted, None for any."""
        self._calls = calls
        self._learner = learner
        self._rollout = rollout
        self._token_ids = token_ids
        self._bound = bound
        self._deadline_s = deadline_s
        self._versions: dict[int, _Version] = {}
        self._num_open = 0
        self._found = LogprobDiff()
        self._effect = LogprobDiff()

    def begin(self, policy_version: int) -> None:
        """Ask everybody; engines and learner have just got this version.

        The wait that an answer arrives in raises WeightMismatchError if it is wrong.
        """
        self._versions = {v: known for v, known in self._versions.items() if 0 <= policy_version - v <= OLDEST}
        self._versions[policy_version] = _Version()
        for rank, (name, call) in enumerate(self._learner.begin_probe(self._token_ids).items()):
            self._watch(name, call, partial(self._learned, rank, policy_version))
        for engine, (name, call) in enumerate(self._rollout.begin_probe(self._token_ids).items()):
            self._watch(name, call, partial(self._told, engine))

    def take(self) -> Metrics:
        """Differences since the last call; empty when nothing was compared."""
        found, self._found = self._found, LogprobDiff()
        effect, self._effect = self._effect, LogprobDiff()
        metrics: Metrics = {}
        if found.num_tokens:
            metrics |= {"sync/logprob_abs_diff/mean": found.mean, "sync/logprob_abs_diff/max": found.largest}
        if effect.num_tokens:
            metrics |= {"sync/adapter_effect/mean": effect.mean, "sync/adapter_effect/max": effect.largest}
        return metrics

    def finish(self) -> None:
        """Wait for every answer. Raises what `begin` names."""
        self._calls.until(
            lambda: self._num_open == 0,
            deadline_s=self._deadline_s,
            late=lambda: f"comparing engines and learner: no answer within {self._deadline_s:g} s",
        )

    def _watch(self, name: str, call: Any, done: Any) -> None:
        def end(answer: Any) -> None:
            self._num_open -= 1
            done(answer)

        self._num_open += 1
        self._calls.start(
            call, who=name, what="comparing weights", deadline_s=self._deadline_s, done=end, is_work=False
        )

    def _learned(self, rank: int, policy_version: int, answer: tuple[np.ndarray, np.ndarray | None]) -> None:
        known = self._versions.get(policy_version)
        if rank == 0 and known is not None:
            known.learned, known.bare = answer
            if known.bare is not None:
                self._effect += diff_of(known.bare, known.learned)
            self._compare(policy_version, known, known.engines)

    def _told(self, engine: int, answer: tuple[int, np.ndarray] | None) -> None:
        if answer is None:
            return
        version, logprobs = answer
        known = self._versions.get(version)
        if known is not None:
            known.engines[engine] = logprobs
            self._compare(version, known, {engine: logprobs})

    def _compare(self, policy_version: int, known: _Version, engines: Mapping[int, np.ndarray]) -> None:
        if known.learned is None or not engines:
            return
        diffs = {engine: diff_of(logprobs, known.learned) for engine, logprobs in engines.items()}
        self._found = sum(diffs.values(), self._found)
        if known.bare is not None:
            check_effect({engine: diff_of(logprobs, known.bare) for engine, logprobs in engines.items()}, diffs)
        if self._bound is not None:
            check_logprobs(
                diffs,
                bound=self._bound,
                policy_version=policy_version,
                num_engines=len(known.engines),
                tokens="a given text",
                consequence="Steps since then may have been trained on its samples",
            )


def check_effect(to_bare: Mapping[int, LogprobDiff], to_policy: Mapping[int, LogprobDiff]) -> None:
    """Raise WeightMismatchError for an engine that is clearly nearer to the model without its adapter.

    While an adapter changes less than the two sides round differently, an engine is as near to the one as to the other.
    """
    for engine, bare in to_bare.items():
        if bare.mean < NEARER * to_policy[engine].mean:
            raise WeightMismatchError(
                f"the adapter has not taken effect: rollout/{engine} gives a fixed text log-probabilities that are "
                f"{bare.mean:.3g} from those of the model without it and {to_policy[engine].mean:.3g} from the policy's"
            )


def probe_text(prompts: Sequence[np.ndarray], max_tokens: int) -> np.ndarray:
    """The first prompts' tokens in a row, [L] int32, as many as an engine takes beside the one it must sample."""
    size = min(NUM_TOKENS, max_tokens - 1)
    return np.concatenate(prompts[:size])[:size].astype(np.int32)
