"""Comparison of the log-probabilities of one fixed text on engines and learner after every broadcast.

Trained tokens do not always show a broken broadcast. When sampling runs ahead, a step trains tokens of earlier policy
versions, whose weights the learner no longer has. And an adapter that has not taken effect changes so little at first
that trained tokens would not show it. The training loop does not wait for the results: they are compared as they
arrive.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any, Protocol

import numpy as np

from rlsys.errors import DeadlineError, WeightMismatchError
from rlsys.metrics.step import Metrics
from rlsys.runtime.calls import Calls
from rlsys.weights.verify import LogprobDiff, check_logprobs, diff_of

# Tokens of the text: enough to show a wrong layer, few enough to cost next to nothing.
NUM_TOKENS = 64
# An engine whose distance to the model without its adapter is below this share of its distance to the policy lacks the
# adapter.
NEARER = 0.5
# Versions behind the newest that a result may still be about; an engine that was busy answers late.
OLDEST = 2


class ProbedSide(Protocol):
    """The policy's ranks, or the rollout pool."""

    def begin_probe(self, token_ids: np.ndarray) -> dict[str, Any]:
        """Start computing the log-probabilities of `token_ids` on every worker."""


class _Version:
    """The results collected for one policy version."""

    def __init__(self) -> None:
        # [L - 1] float32 under the policy, and without its adapter where it has one.
        self.learned: asyncio.Future[tuple[np.ndarray, np.ndarray | None]] = asyncio.get_running_loop().create_future()
        self.num_engines = 0  # engines whose result has arrived


class WeightCanary:
    """The canary of a run: probes both sides with one text, and sums up the differences until `take`."""

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
        """Probe with `token_ids`, [L] int32; `bound` is the largest accepted difference, None for any."""
        self._calls = calls
        self._learner = learner
        self._rollout = rollout
        self._token_ids = token_ids
        self._bound = bound
        self._deadline_s = deadline_s
        self._versions: dict[int, _Version] = {}
        self._open: set[asyncio.Task[None]] = set()
        self._difference = LogprobDiff()
        self._effect = LogprobDiff()

    def begin(self, policy_version: int) -> None:
        """Probe every rank and engine; they have just got this version.

        A wrong result ends the run with a WeightMismatchError, from the background.
        """
        self._versions = {v: known for v, known in self._versions.items() if 0 <= policy_version - v <= OLDEST}
        version = self._versions[policy_version] = _Version()
        # Every rank is probed: under ZeRO-3 none has the whole policy, so a forward needs them all.
        for rank, (name, call) in enumerate(self._learner.begin_probe(self._token_ids).items()):
            self._start(self._take_learned(name, call, version if rank == 0 else None))
        for engine, (name, call) in enumerate(self._rollout.begin_probe(self._token_ids).items()):
            self._start(self._compare_engine(engine, name, call))

    def take(self) -> Metrics:
        """Return the differences since the last call; empty when nothing was compared."""
        difference, self._difference = self._difference, LogprobDiff()
        effect, self._effect = self._effect, LogprobDiff()
        metrics: Metrics = {}
        if difference.num_tokens:
            metrics |= {
                "sync/logprob_abs_diff/mean": difference.mean,
                "sync/logprob_abs_diff/max": difference.largest,
            }
        if effect.num_tokens:
            metrics |= {"sync/adapter_effect/mean": effect.mean, "sync/adapter_effect/max": effect.largest}
        return metrics

    async def finish(self) -> None:
        """Wait for every open comparison. Raises what `begin` names."""
        if not self._open:
            return
        done, late = await asyncio.wait(self._open, timeout=self._deadline_s)
        for task in done:
            task.result()
        if late:
            raise DeadlineError(f"comparing engines and learner: no answer within {self._deadline_s:g} s")

    def _start(self, work: Any) -> None:
        task = self._calls.background.start(work)
        self._open.add(task)
        task.add_done_callback(self._open.discard)

    async def _result(self, name: str, call: Any) -> Any:
        return await self._calls.result(
            call, who=name, what="comparing weights", deadline_s=self._deadline_s, is_work=False
        )

    async def _take_learned(self, name: str, call: Any, version: _Version | None) -> None:
        """Wait for one rank's result, and keep it if `version` is given (rank 0). All ranks compute the same."""
        learned, bare = await self._result(name, call)
        if version is None:
            return
        version.learned.set_result((learned, bare))
        if bare is not None:
            self._effect += diff_of(bare, learned)

    async def _compare_engine(self, engine: int, name: str, call: Any) -> None:
        answer = await self._result(name, call)
        if answer is None:  # weights came in between each time it tried
            return
        policy_version, logprobs = answer
        version = self._versions.get(policy_version)
        if version is None:  # too long ago, or newer than what was begun
            return
        learned, bare = await version.learned
        version.num_engines += 1
        difference = diff_of(logprobs, learned)
        self._difference += difference
        if self._bound is None:  # weights.verify=false
            return
        if bare is not None:
            check_effect(engine, diff_of(logprobs, bare), difference)
        check_logprobs(
            {engine: difference},
            bound=self._bound,
            policy_version=policy_version,
            num_engines=version.num_engines,
            tokens="a given text",
            consequence="Steps since then may have been trained on its samples",
        )


def check_effect(engine: int, to_bare: LogprobDiff, to_policy: LogprobDiff) -> None:
    """Raise WeightMismatchError for an engine that is clearly nearer to the model without its adapter.

    While an adapter changes less than the two sides round differently, an engine is as near to the one as to the other.
    """
    if to_bare.mean < NEARER * to_policy.mean:
        raise WeightMismatchError(
            f"the adapter has not taken effect: rollout/{engine} gives a fixed text log-probabilities that are "
            f"{to_bare.mean:.3g} from those of the model without it and {to_policy.mean:.3g} from the policy's"
        )


def canary_text(prompts: Sequence[np.ndarray], max_tokens: int) -> np.ndarray:
    """Return the first prompts' tokens in a row, [L] int32, as many as leave an engine room for the one it samples."""
    size = min(NUM_TOKENS, max_tokens - 1)
    return np.concatenate(prompts[:size])[:size].astype(np.int32)
