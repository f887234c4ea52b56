"""The critic group: a second gang, with values instead of words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlsys.learner.critic_worker import CriticSetup, CriticWorker
from rlsys.learner.rank import Share
from rlsys.learner.ranks import GangGroup
from rlsys.runtime.balance import balance
from rlsys.runtime.chunks import ChunkIndex, chunks_of
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.types import Coefficients, ExperienceRow, Reward, RolloutGroup


class CriticGroup(GangGroup):
    """Estimates every trajectory's values, then learns from the returns."""

    METRICS = "critic"

    def __init__(self, cluster: Cluster, setup: CriticSetup, demands: list[Demand]) -> None:
        super().__init__(cluster, CriticWorker, setup.critic, setup, demands)

    def estimate(
        self,
        groups: Sequence[RolloutGroup],
        rewards: Sequence[Sequence[Reward]],
        ref_logprobs: tuple[Any, ...] | None,
        coefficients: Coefficients,
    ) -> tuple[tuple[Any, ...], dict[str, float]]:
        """One reference a group to its trajectories' estimates (list[ValueEstimate]), and metrics; waits for all."""
        shares = balance([sum(s.num_tokens for s in group.summaries) for group in groups], len(self._workers))
        out: list[Any] = [None] * len(groups)
        calls = {}
        for (name, worker), chosen in zip(self._workers.items(), shares, strict=True):
            chunks, places = chunks_of(groups[i].trajectories for i in chosen)
            share = _whole([groups[i] for i in chosen], places, coefficients, ref_logprobs is not None)
            totals = [[reward.total for reward in rewards[i]] for i in chosen]
            arrays = [*chunks, *(ref_logprobs[i] for i in chosen)] if ref_logprobs is not None else chunks
            answer = worker.estimate.options(num_returns=1 + len(chosen)).remote(totals, share, *arrays)
            metrics, *refs = answer if chosen else [answer]
            calls[name] = metrics
            for index, ref in zip(chosen, refs, strict=True):
                out[index] = ref
        results = self._cluster.calls.gather(calls, what="value estimates", deadline_s=self._config.deadline_s)
        first = next(iter(results.values()))
        return tuple(out), first[0] if isinstance(first, list) else first


def _whole(
    groups: Sequence[RolloutGroup],
    places: Sequence[Sequence[ChunkIndex]],
    coefficients: Coefficients,
    has_reference: bool,
) -> Share:
    """Every trajectory of the groups as one minibatch; a row's group is its place among them."""
    pairs = [(g, s, summary) for g, group in enumerate(groups) for s, summary in enumerate(group.summaries)]
    rows = tuple(
        ExperienceRow(index, g, s, 0.0, 0.0, summary.num_tokens, summary.num_response_tokens)
        for index, (g, s, summary) in enumerate(pairs)
    )
    return Share((rows,), (0,), coefficients, 0, places, has_reference, has_estimates=False)
