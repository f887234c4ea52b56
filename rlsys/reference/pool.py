"""The pool of reference workers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rlsys.batch import balance
from rlsys.chunks import chunks_of
from rlsys.config import ReferenceConfig
from rlsys.reference.worker import REFERENCE_FILE, ReferenceWorker
from rlsys.runtime.calls import gather
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.types import RolloutGroup

__all__ = ["REFERENCE_FILE", "ReferencePool"]


class ReferencePool:
    """Interchangeable workers; each takes a share of the groups, balanced by tokens."""

    def __init__(self, cluster: Cluster, config: ReferenceConfig, demands: list[Demand], *worker_args: Any) -> None:
        self._config = config
        self._workers = {
            demand.name: cluster.start(ReferenceWorker, demand, config, *worker_args) for demand in demands
        }

        self.is_initial = True  # until a refresh, or a checkpoint of one

    def start(self, deadline_s: float) -> None:
        """Wait until every worker has its model."""
        calls = {name: worker.ping.remote() for name, worker in self._workers.items()}
        gather(calls, what="starting the reference", deadline_s=deadline_s)

    def logprobs(self, groups: Sequence[RolloutGroup]) -> tuple[tuple[Any, ...], list[list[float]]]:
        """Waits for all workers.

        Returns: one reference per group to its trajectories' log-probabilities (list of [L] float32), and per group the
        divergence of the policy that sampled from the reference, summed over each response (empty lists where the
        workers were given none).
        """
        shares = balance([sum(s.num_tokens for s in group.summaries) for group in groups], len(self._workers))
        out: list[Any] = [None] * len(groups)
        kl_sums: list[list[float]] = [[] for _ in groups]
        calls, taken = {}, {}
        for (name, worker), share in zip(self._workers.items(), shares, strict=True):
            if not share:
                continue
            chunks, places = chunks_of(groups[i].trajectories for i in share)
            sums, *refs = worker.logprobs.options(num_returns=1 + len(share)).remote(places, *chunks)
            calls[name], taken[name] = sums, share
            for index, ref in zip(share, refs, strict=True):
                out[index] = ref
        answers = gather(calls, what="reference log-probabilities", deadline_s=self._config.deadline_s)
        for name, sums in answers.items():
            for index, of_group in zip(taken[name], sums, strict=bool(sums)):
                kl_sums[index] = of_group
        return tuple(out), kl_sums

    def blend(self, policy: Mapping[str, Any], alpha: float) -> None:
        """`ref = alpha * policy + (1 - alpha) * ref` on every worker (TR-DPO, arXiv:2404.09656).

        Args:
            policy: the learner ranks' unfinished answers to `read_weights`; the first holds the weights.
            alpha: 1 copies the policy.
        """
        weights = next(iter(policy.values()))
        calls = {name: worker.blend.remote(weights, alpha) for name, worker in self._workers.items()}
        gather({**policy, **calls}, what="refreshing the reference", deadline_s=self._config.deadline_s)
        self.is_initial = False

    def save(self, folder: str) -> None:
        """Write the reference's weights, from its first worker."""
        name, worker = next(iter(self._workers.items()))
        gather({name: worker.save.remote(folder)}, what="saving the reference", deadline_s=self._config.deadline_s)

    def load(self, folder: str) -> None:
        """Restore what `save` wrote, on every worker."""
        calls = {name: worker.load.remote(folder) for name, worker in self._workers.items()}
        gather(calls, what=f"loading the reference of {folder}", deadline_s=self._config.deadline_s)
        self.is_initial = False
