"""The learner group: the gang that trains the policy and speaks for it in broadcasts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rlsys.learner.policy_rank import PolicyRank
from rlsys.learner.ranks import GangGroup
from rlsys.learner.setup import PolicySetup
from rlsys.runtime.balance import balance
from rlsys.runtime.chunks import chunks_of
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.types import RolloutGroup


class LearnerGroup(GangGroup):
    """What a broadcast and a reference refresh ask of the policy's gang."""

    METRICS = "policy"

    def __init__(self, cluster: Cluster, setup: PolicySetup, demands: list[Demand]) -> None:
        super().__init__(cluster, PolicyRank, setup.learner, setup, demands)
        self._update_info: Mapping[str, Any] = {}

    def weight_address(self) -> tuple[str, int]:
        """Rank 0's node address and a free port there."""
        return self.address()

    def weight_update_info(self, backend: str) -> Mapping[str, Any]:
        """What the next broadcast carries; with ipc, the handles themselves."""
        return self._all("export_weights", what="exporting weights") if backend == "ipc" else self._update_info

    def begin_open_weights(self, backend: str, host: str, port: int, world_size: int) -> dict[str, Any]:
        return {
            name: worker.open_weights.remote(backend, host, port, world_size) for name, worker in self._workers.items()
        }

    def begin_send_weights(self) -> dict[str, Any]:
        return {name: worker.send_weights.remote() for name, worker in self._workers.items()}

    def begin_read_weights(self) -> dict[str, Any]:
        """The whole policy, as a reference to what rank 0 returns first, and the other ranks' empty answers."""
        return {name: worker.read_weights.remote() for name, worker in self._workers.items()}

    def begin_read_adapter(self) -> tuple[dict[str, Any], Any]:
        """The ranks' unfinished calls, and a reference to the policy's `PackedAdapter`."""
        calls = {name: worker.read_adapter.options(num_returns=2).remote() for name, worker in self._workers.items()}
        return {name: done for name, (done, _) in calls.items()}, next(iter(calls.values()))[1]

    def reference(self, groups: Sequence[RolloutGroup]) -> tuple[list[Any], list[list[float]]]:
        """The policy without its adapter on whole groups: of each a reference to its trajectories' log-probabilities, a
        list of [L] float32, and the divergence summed over each response (nothing where it is not in the reward)."""
        chunks, places = chunks_of(group.trajectories for group in groups)
        sizes = [sum(summary.num_tokens for summary in group.summaries) for group in groups]
        shares = [sorted(share) for share in balance(sizes, len(self._workers))]
        calls: dict[str, Any] = {}
        refs: list[Any] = [None] * len(groups)
        for (name, worker), share in zip(self._workers.items(), shares, strict=True):
            call = worker.reference.options(num_returns=2 + len(share))
            calls[name], _, *of_groups = call.remote(share, places, *chunks)
            for number, ref in zip(share, of_groups, strict=True):
                refs[number] = ref
        what = "reference log-probabilities"
        sums = self._cluster.calls.gather(calls, what=what, deadline_s=self._config.deadline_s)
        kl_sums: list[list[float]] = [[] for _ in groups]
        for of_rank, share in zip(sums.values(), shares, strict=True):
            for number, of_group in zip(share if of_rank else [], of_rank, strict=True):
                kl_sums[number] = of_group
        return refs, kl_sums

    def begin_probe(self, token_ids: np.ndarray) -> dict[str, Any]:
        """What every rank says of given tokens, with and without its adapter; each says the same."""
        return {name: worker.probe.remote(token_ids) for name, worker in self._workers.items()}

    def _on_started(self, info: Any) -> None:
        self._update_info = info
