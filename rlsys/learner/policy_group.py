"""The policy's ranks as the driver calls them: for training, broadcasts, the reference and the canary."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlsys.learner.policy_rank import PolicyRank
from rlsys.learner.rank_group import RankGroup
from rlsys.learner.setup import PolicySetup
from rlsys.runtime.balance import balance
from rlsys.runtime.chunks import chunks_of
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.room import Demand
from rlsys.types import ReferenceScores, RolloutGroup


class PolicyGroup(RankGroup):
    """The ranks of the policy: they train it, send its weights, and compute log-probabilities under it."""

    METRICS = "policy"

    def __init__(self, cluster: Cluster, setup: PolicySetup, demands: list[Demand]) -> None:
        super().__init__(cluster, PolicyRank, setup.learner, setup, demands)
        self._update_info: Mapping[str, Any] = {}

    async def weight_update_info(self, backend: str) -> tuple[Mapping[str, Any], Sequence[int]]:
        """Return what the next broadcast carries; with ipc, the handles themselves and the buckets' checksums."""
        if backend == "ipc":
            exported: tuple[Mapping[str, Any], Sequence[int]] = await self._each(
                "export_weights", what="exporting weights"
            )
            return exported
        return self._update_info, ()

    def begin_open_weights(self, backend: str, host: str, port: int, world_size: int) -> dict[str, Any]:
        """Open the weight channel on every rank."""
        return self._begin("open_weights", backend, host, port, world_size)

    def begin_send_weights(self) -> dict[str, Any]:
        """Broadcast the policy; every rank takes part in gathering it, and rank 0 gives the buckets' checksums."""
        return self._begin("send_weights")

    def begin_read_weights(self, number: int) -> tuple[dict[str, Any], Any]:
        """Read one part of the policy: each rank's answer whether it is the last, and a reference to the part."""
        return self._begin_two("read_weights", number)

    def begin_read_adapter(self) -> tuple[dict[str, Any], Any]:
        """Read the adapter: the ranks' unfinished calls, and a reference to the policy's `PackedAdapter`."""
        return self._begin_two("read_adapter")

    def begin_probe(self, token_ids: np.ndarray) -> dict[str, Any]:
        """Compute log-probabilities of given tokens, with and without the adapter; every rank gives the same."""
        return self._begin("probe", token_ids)

    async def reference_scores(self, groups: Sequence[RolloutGroup]) -> list[ReferenceScores]:
        """Score whole groups under the policy without its adapter; one result per group."""
        chunks, chunk_indices = chunks_of(group.trajectories for group in groups)
        sizes = [sum(summary.num_tokens for summary in group.summaries) for group in groups]
        shares = [sorted(share) for share in balance(sizes, len(self._workers))]
        calls: dict[str, Any] = {}
        logprobs: list[Any] = [None] * len(groups)
        for (name, worker), share in zip(self._workers.items(), shares, strict=True):
            call = worker.reference.options(num_returns=2 + len(share))
            calls[name], _, *of_groups = call.remote(share, chunk_indices, *chunks)
            for number, ref in zip(share, of_groups, strict=True):
                logprobs[number] = ref
        # An update may be ahead of this call on every rank.
        deadline_s = 2 * self._config.deadline_s
        sums = await self._calls.gather(calls, what="reference log-probabilities", deadline_s=deadline_s)
        kl_sums: list[list[float]] = [[] for _ in groups]
        for of_rank, share in zip(sums.values(), shares, strict=True):
            for number, of_group in zip(share if of_rank else [], of_rank, strict=True):
                kl_sums[number] = of_group
        return [ReferenceScores(ref, of_group) for ref, of_group in zip(logprobs, kl_sums, strict=True)]

    def _begin_two(self, method: str, *args: Any) -> tuple[dict[str, Any], Any]:
        """Call a method with two results on every rank: every rank's first, and rank 0's second, which stays in Ray."""
        calls = {
            name: getattr(worker, method).options(num_returns=2).remote(*args) for name, worker in self._workers.items()
        }
        return {name: first for name, (first, _) in calls.items()}, next(iter(calls.values()))[1]

    def _on_started(self, info: Any) -> None:
        self._update_info = info
