"""The pool of reference workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlsys.reference.worker import REFERENCE_FILE, ReferenceSetup, ReferenceWorker
from rlsys.runtime.chunks import chunks_of
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.types import RolloutGroup

__all__ = ["REFERENCE_FILE", "ReferencePool"]


class ReferencePool:
    """Interchangeable workers; each takes a share of the groups, balanced by tokens."""

    def __init__(self, cluster: Cluster, setup: ReferenceSetup, demands: list[Demand]) -> None:
        self._calls = cluster.calls
        self._config = setup.reference
        self.names = [demand.name for demand in demands]
        self.deadline_s = setup.reference.deadline_s
        self._workers = {demand.name: cluster.start(ReferenceWorker, demand, setup) for demand in demands}
        self.is_initial = True  # until a refresh, or a checkpoint of one

    def start(self, deadline_s: float) -> None:
        """Wait until every worker has its model."""
        calls = {name: worker.ping.remote() for name, worker in self._workers.items()}
        self._calls.gather(calls, what="starting the reference", deadline_s=deadline_s)

    def begin_logprobs(self, worker: int, groups: Sequence[RolloutGroup]) -> tuple[Any, list[Any]]:
        """Score whole groups on one worker.

        Returns: a reference to the divergence of the policy that sampled from the reference, summed over each response,
        a list per group (or an empty list where the workers were given none); and per group a reference to its
        trajectories' log-probabilities, a list of [L] float32.
        """
        chunks, places = chunks_of(group.trajectories for group in groups)
        call = self._workers[self.names[worker]].logprobs.options(num_returns=1 + len(groups))
        sums, *refs = call.remote(places, *chunks)
        return sums, refs

    def begin_take_spans(self) -> dict[str, Any]:
        """References to what each worker did since the last call."""
        return {name: worker.take_spans.remote() for name, worker in self._workers.items()}

    def blend(self, policy: Mapping[str, Any], alpha: float) -> None:
        """`ref = alpha * policy + (1 - alpha) * ref` on every worker (TR-DPO, arXiv:2404.09656).

        Args:
            policy: the learner ranks' unfinished answers to `read_weights`; the first holds the weights.
            alpha: 1 copies the policy.
        """
        weights = next(iter(policy.values()))
        calls = {name: worker.blend.remote(weights, alpha) for name, worker in self._workers.items()}
        self._calls.gather({**policy, **calls}, what="refreshing the reference", deadline_s=self._config.deadline_s)
        self.is_initial = False

    def save(self, folder: str) -> None:
        """Write the reference's weights, from its first worker."""
        name, worker = next(iter(self._workers.items()))
        self._calls.gather(
            {name: worker.save.remote(folder)}, what="saving the reference", deadline_s=self._config.deadline_s
        )

    def load(self, folder: str) -> None:
        """Restore what `save` wrote, on every worker."""
        calls = {name: worker.load.remote(folder) for name, worker in self._workers.items()}
        self._calls.gather(calls, what=f"loading the reference of {folder}", deadline_s=self._config.deadline_s)
        self.is_initial = False
