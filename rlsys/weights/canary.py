"""Comparison of the log-probabilities of one fixed text on engines and learner after every broadcast.

Trained tokens do not always show a broken broadcast. When sampling runs ahead, a step trains tokens of earlier policy
versions, whose weights the learner no longer has. An adapter that has not taken effect changes so little at first that
trained tokens would not show it, and so does one step of training. The training loop does not wait for the results:
they are compared as they arrive.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Collection, Sequence
from typing import Any, Protocol

import numpy as np

from rlsys.errors import DeadlineError, SuspectPolicyError, WorkerDiedError, WorkerError
from rlsys.metrics.step import Metrics
from rlsys.runtime.calls import Calls
from rlsys.weights.change import EngineChange, Scored
from rlsys.weights.verify import Differences

# Tokens of the text: enough to show a wrong layer, few enough to cost next to nothing.
NUM_TOKENS = 64
# An engine whose distance to the model without its adapter is below this share of its distance to the policy lacks the
# adapter.
NEARER = 0.5
# Versions behind the newest that a result may still be about; an engine that was busy answers late.
OLDEST = 2
# Versions in a row without an answer of any engine before that is a warning.
MISSED = 3

logger = logging.getLogger(__name__)


class ProbedSide(Protocol):
    """The policy's ranks."""

    def begin_probe(self, token_ids: np.ndarray) -> dict[str, Any]:
        """Start computing the log-probabilities of `token_ids` on every worker."""


class ProbedEngines(Protocol):
    """The rollout pool."""

    def begin_probe(self, token_ids: np.ndarray, names: Collection[str] | None = None) -> dict[str, Any]:
        """Start computing the log-probabilities of `token_ids` on every engine, or on those that are named."""


class _Version:
    """The results collected for one policy version."""

    def __init__(self) -> None:
        # [L - 1] float32 under the policy, and without its adapter where it has one.
        self.learned: asyncio.Future[tuple[np.ndarray, np.ndarray | None]] = asyncio.get_running_loop().create_future()
        self.served: dict[str, np.ndarray] = {}  # [L - 1] float32 by engine


class WeightCanary:
    """The canary of a run: probes both sides with one text, and sums up the differences until `take`."""

    def __init__(
        self,
        calls: Calls,
        learner: ProbedSide,
        rollout: ProbedEngines,
        token_ids: np.ndarray,
        *,
        dtype: str | None,
        deadline_s: float,
    ) -> None:
        """Probe with `token_ids`, [L] int32; `dtype` is the coarser of both sides', None accepts any difference."""
        self._calls = calls
        self._learner = learner
        self._rollout = rollout
        self._token_ids = token_ids
        self._deadline_s = deadline_s
        self._versions: dict[int, _Version] = {}
        self._changes: defaultdict[str, EngineChange] | None = None
        if dtype is not None:
            self._changes = defaultdict(lambda: EngineChange(dtype))
        self._open: set[asyncio.Task[None]] = set()
        self._before: np.ndarray | None = None  # the learner's at the version before
        self._difference = Differences()
        self._moved = Differences()
        self._effect = Differences()
        self._missed = 0  # versions without an answer of any engine, since the last `take`
        self._missed_in_a_row = 0

    async def ask_learner(self, policy_version: int) -> None:
        """Probe every rank, which has just made this version, and wait for the result; `begin` then asks the engines.

        For roles that share cores: two small forwards at once take several times as long as one after the other.
        """
        await asyncio.wait([self._ask_learner(policy_version).learned])

    def begin(self, policy_version: int) -> None:
        """Probe every engine, which has just got this version, and every rank, unless it was asked already.

        A wrong result ends the run with a SuspectPolicyError, from the background.
        """
        version = self._versions.get(policy_version) or self._ask_learner(policy_version)
        answers = [
            self._start(self._take_served(engine, call))
            for engine, call in self._rollout.begin_probe(self._token_ids).items()
        ]
        if answers:  # else every engine was lost, and those that come back are compared before they serve
            self._start(self._judge(policy_version, version, answers))

    async def check(self, policy_version: int, engine: str) -> None:
        """Compare an engine that has just started, and been given a version, before it serves.

        Raises:
            WorkerError: it was lost, or does not compute what the learner does; later versions are compared with this.
        """
        version = self._versions.get(policy_version) or self._ask_learner(policy_version)
        if self._changes is not None:
            self._changes.pop(engine, None)  # what the process before it gave
        await self._take_served(engine, self._rollout.begin_probe(self._token_ids, [engine])[engine])
        learned, bare = await version.learned
        if engine not in version.served:
            raise WorkerError(f"{engine} was given policy version {policy_version}, and gave nothing to compare")
        problem = self._problem(policy_version, engine, version, learned, bare)
        if problem is not None:
            raise WorkerError(f"{engine} was given policy version {policy_version}, and {problem}")

    def take(self) -> Metrics:
        """Return the differences since the last call; empty when nothing was compared."""
        difference, self._difference = self._difference, Differences()
        moved, self._moved = self._moved, Differences()
        effect, self._effect = self._effect, Differences()
        metrics: Metrics = {**difference.metrics()}
        if self._missed:
            metrics["sync/canary_missed"], self._missed = self._missed, 0
        if moved.num_tokens:
            metrics["sync/canary_change/mean"] = moved.mean
        if effect.num_tokens:
            metrics |= {"sync/adapter_effect/mean": effect.mean, "sync/adapter_effect/p999": effect.quantile}
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

    def _ask_learner(self, policy_version: int) -> _Version:
        self._versions = {v: known for v, known in self._versions.items() if 0 <= policy_version - v <= OLDEST}
        version = self._versions[policy_version] = _Version()
        # Every rank is probed: under ZeRO-3 none has the whole policy, so a forward needs them all.
        for rank, (name, call) in enumerate(self._learner.begin_probe(self._token_ids).items()):
            self._start(self._take_learned(name, call, version if rank == 0 else None))
        return version

    def _start(self, work: Any) -> asyncio.Task[None]:
        task: asyncio.Task[None] = self._calls.background.start(work)
        self._open.add(task)
        task.add_done_callback(self._open.discard)
        return task

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
        if self._before is not None:
            self._moved += Differences.between(self._before, learned)
        self._before = learned
        if bare is not None:
            self._effect += Differences.between(bare, learned)

    async def _take_served(self, engine: str, call: Any) -> None:
        try:
            answer = await self._result(engine, call)
        except WorkerDiedError as error:  # nobody trains on what it would have sampled
            logger.warning("not compared with the learner: %s", error)
            return
        if answer is None:  # weights came in between each time it tried
            return
        policy_version, logprobs = answer
        version = self._versions.get(policy_version)
        if version is not None:  # else too long ago, or newer than what was begun
            version.served[engine] = logprobs

    async def _judge(self, policy_version: int, version: _Version, answers: Sequence[asyncio.Task[None]]) -> None:
        """Compare a version once every engine has answered, so that the message can say which of them agree."""
        await asyncio.wait(answers)
        learned, bare = await version.learned
        self._count(policy_version, is_missed=not version.served)
        found = {each: self._problem(policy_version, each, version, learned, bare) for each in sorted(version.served)}
        problems = {engine: problem for engine, problem in found.items() if problem is not None}
        if problems:
            raise SuspectPolicyError(_message(problems, len(version.served), policy_version))

    def _problem(
        self, policy_version: int, engine: str, version: _Version, learned: np.ndarray, bare: np.ndarray | None
    ) -> str | None:
        """Count what an engine gave in the differences; return what is wrong with it, or None."""
        served = version.served[engine]
        self._difference += Differences.between(served, learned)
        if self._changes is None:  # weights.verify=false
            return None
        problem = self._changes[engine].judge(Scored(policy_version, learned, served))
        if bare is not None:
            to_bare, to_policy = Differences.between(served, bare), Differences.between(served, learned)
            problem = missing_effect(to_bare, to_policy) or problem
        return problem

    def _count(self, policy_version: int, *, is_missed: bool) -> None:
        self._missed += is_missed
        self._missed_in_a_row = self._missed_in_a_row + 1 if is_missed else 0
        if self._missed_in_a_row == MISSED:
            logger.warning(
                "no engine had the time to compute the fixed text under the policy versions up to %d, so nothing shows "
                "whether the engines use the weights they received: they are too busy (rollout.max_in_flight)",
                policy_version,
            )


def _message(problems: dict[str, str], num_engines: int, policy_version: int) -> str:
    names = ", ".join(problems)
    others = "the other engines agree with the learner" if len(problems) < num_engines else "no engine agrees"
    return (
        f"{names} and the learner disagree about the log-probabilities of a fixed text at policy version "
        f"{policy_version} ({others}). Of {names.split(',')[0]}: {next(iter(problems.values()))}. Steps since then may "
        "have been trained on its samples. weights.verify=false turns the check off"
    )


def missing_effect(to_bare: Differences, to_policy: Differences) -> str | None:
    """Return what is wrong with an engine that is clearly nearer to the model without its adapter, or None.

    While an adapter changes less than the two sides round differently, an engine is as near to the one as to the other.
    """
    if to_bare.mean >= NEARER * to_policy.mean:
        return None
    return (
        f"the adapter has not taken effect: its log-probabilities are {to_bare.mean:.3g} from those of the model "
        f"without it and {to_policy.mean:.3g} from the policy's"
    )


def canary_text(prompts: Sequence[np.ndarray], max_tokens: int) -> np.ndarray:
    """Return the first prompts' tokens in a row, [L] int32, as many as leave an engine room for the one it samples."""
    size = min(NUM_TOKENS, max_tokens - 1)
    return np.concatenate(prompts[:size])[:size].astype(np.int32)
