"""The critic's ranks as the driver calls them: value estimates, then the update of the critic."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from rlsys.learner.critic_rank import CriticRank
from rlsys.learner.rank_batch import RankBatch
from rlsys.learner.rank_group import RankGroup
from rlsys.learner.setup import CriticSetup
from rlsys.runtime.balance import balance
from rlsys.runtime.chunks import ChunkIndex, chunks_of
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.room import Demand
from rlsys.types import Coefficients, ExperienceRow, ScoredGroup


class CriticGroup(RankGroup):
    """The ranks of the critic: they estimate every trajectory's values, then learn from the returns."""

    METRICS = "critic"

    def __init__(self, cluster: Cluster, setup: CriticSetup, demands: list[Demand]) -> None:
        super().__init__(cluster, CriticRank, setup.critic, setup, demands)

    async def estimate(
        self, groups: Sequence[ScoredGroup], coefficients: Coefficients
    ) -> tuple[tuple[Any, ...], dict[str, float]]:
        """Estimate the values of whole groups.

        Returns:
            A reference per group to its trajectories' estimates (list[ValueEstimate]), and metrics.
        """
        sizes = [sum(summary.num_tokens for summary in group.rollout.summaries) for group in groups]
        out: list[Any] = [None] * len(groups)
        calls = {}
        for (name, worker), chosen in zip(self._workers.items(), balance(sizes, len(self._workers)), strict=True):
            own = [groups[index] for index in chosen]
            chunks, chunk_indices = chunks_of(group.rollout.trajectories for group in own)
            references = [group.reference.logprobs for group in own if group.reference is not None]
            batch = _whole(own, chunk_indices, coefficients, has_reference=bool(references))
            totals = [[reward.total for reward in group.rewards] for group in own]
            # A rank without groups has one return. Ray then gives one reference instead of a list, and its result is
            # the whole list `[metrics]`. With more returns each element of the list is an object of its own.
            answer = worker.estimate.options(num_returns=1 + len(chosen)).remote(totals, batch, *chunks, *references)
            metrics, *refs = answer if chosen else [answer]
            calls[name] = metrics
            for index, ref in zip(chosen, refs, strict=True):
                out[index] = ref
        results = await self._calls.gather(calls, what="value estimates", deadline_s=self._config.deadline_s)
        first = next(iter(results.values()))
        return tuple(out), first[0] if isinstance(first, list) else first


def _whole(
    groups: Sequence[ScoredGroup],
    chunk_indices: Sequence[Sequence[ChunkIndex]],
    coefficients: Coefficients,
    *,
    has_reference: bool,
) -> RankBatch:
    """Return every trajectory of the groups as one minibatch; a row's group is its position among them."""
    pairs = [(g, s, summary) for g, group in enumerate(groups) for s, summary in enumerate(group.rollout.summaries)]
    rows = tuple(
        ExperienceRow(index, g, s, 0.0, 0.0, summary.num_tokens, summary.num_response_tokens)
        for index, (g, s, summary) in enumerate(pairs)
    )
    return RankBatch((rows,), (0,), coefficients, 0, chunk_indices, has_reference, has_estimates=False)
