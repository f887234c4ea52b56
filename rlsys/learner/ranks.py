"""A gang as the driver sees it: W ranks called together; one failing rank fails the call."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rlsys.config.schema import LearnerConfig
from rlsys.learner.rank import Rank
from rlsys.learner.rank_batch import RankBatch
from rlsys.runtime.balance import balance
from rlsys.runtime.chunks import chunks_of
from rlsys.runtime.cluster import Cluster, Demand
from rlsys.types import Experience, ExperienceRow, Offender


class GangGroup:
    """Starts the ranks and divides each step's work among them."""

    METRICS = ""
    """First word of its metrics."""

    def __init__(
        self, cluster: Cluster, worker: type[Rank], config: LearnerConfig, setup: Any, demands: Sequence[Demand]
    ) -> None:
        self._cluster = cluster
        self._config = config
        self._name = worker.TAG
        self._workers = {demand.name: cluster.start(worker, demand, rank, setup) for rank, demand in enumerate(demands)}
        self._lead = next(iter(self._workers.values()))

    def start(self, deadline_s: float) -> None:
        """Build the engine on every rank."""
        host, port = self.address()
        calls = {name: worker.start.remote(host, port) for name, worker in self._workers.items()}
        infos = self._cluster.calls.gather(calls, what=f"starting the {self._name}", deadline_s=deadline_s)
        self._on_started(next(iter(infos.values())))

    def update(self, experience: Experience) -> tuple[dict[str, float], list[Offender]]:
        """Train on `experience`: metrics, which are the same on every rank, and all ranks' trajectories that brought
        NaN or infinity."""
        shares = [divide(rows, len(self._workers)) for rows in experience.minibatches]
        num_tokens = tuple(sum(row.num_response_tokens for row in rows) for rows in experience.minibatches)
        chunks, places = chunks_of(experience.trajectories)
        arrays = [*chunks, *(experience.ref_logprobs or ()), *(experience.estimates or ())]
        calls = {}
        for rank, (name, worker) in enumerate(self._workers.items()):
            parts = zip(experience.minibatches, shares, strict=True)
            batch = RankBatch(
                minibatches=tuple(tuple(rows[index] for index in split[rank]) for rows, split in parts),
                num_tokens=num_tokens,
                coefficients=experience.coefficients,
                policy_version=experience.policy_version,
                chunk_indices=places,
                has_reference=experience.ref_logprobs is not None,
                has_estimates=experience.estimates is not None,
            )
            calls[name] = worker.update.remote(batch, *arrays)
        results = self._cluster.calls.gather(calls, what=f"{self._name} update", deadline_s=self._config.deadline_s)
        metrics = next(iter(results.values()))[0]
        offenders = [offender for _, found in results.values() for offender in found]
        if metrics[f"{self.METRICS}/not_applied"] and not offenders:
            offenders = [Offender(row.group, row.sample, "gradient") for row in experience.rows]
        return metrics, offenders

    def save(self, folder: str) -> None:
        """Write a checkpoint; every rank writes its part."""
        self._all("save", folder, what=f"saving the {self._name}")

    def load(self, folder: str) -> None:
        """Restore a checkpoint on every rank."""
        self._all("load", folder, what=f"loading {folder}")

    def begin_take_spans(self) -> dict[str, Any]:
        """References to what each rank did since the last call."""
        return {name: worker.take_spans.remote() for name, worker in self._workers.items()}

    def stop(self, deadline_s: float) -> None:
        """Leave the process group on every rank."""
        calls = {name: worker.stop.remote() for name, worker in self._workers.items()}
        self._cluster.calls.gather(calls, what=f"stopping the {self._name}", deadline_s=deadline_s)

    def address(self) -> tuple[str, int]:
        """Rank 0's node address and a free port there."""
        name = next(iter(self._workers))
        return self._cluster.calls.gather(
            {name: self._lead.address.remote()}, what=f"{self._name} address", deadline_s=300.0
        )[name]

    def kill(self) -> None:
        """End every rank's process now."""
        self._cluster.kill(self._workers.values())

    def _on_started(self, info: Any) -> None:
        """What rank 0 answered."""

    def _all(self, method: str, *args: Any, what: str) -> Any:
        calls: Mapping[str, Any] = {
            name: getattr(worker, method).remote(*args) for name, worker in self._workers.items()
        }
        return next(iter(self._cluster.calls.gather(calls, what=what, deadline_s=self._config.deadline_s).values()))


def divide(rows: Sequence[ExperienceRow], num_ranks: int) -> list[list[int]]:
    """Indices of each rank's rows, balanced by tokens; a prompt's responses together, since they share its tokens.

    Groups are cut only where there are too few of them to balance.
    """
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.group, []).append(index)
    num_cuts = math.ceil(2 * num_ranks / max(len(groups), 1)) if num_ranks > 1 else 1
    parts = [part for members in groups.values() for cut in range(num_cuts) if (part := members[cut::num_cuts])]
    prompts = [rows[part[0]].num_tokens - rows[part[0]].num_response_tokens for part in parts]
    tokens = [
        prompt + sum(rows[index].num_response_tokens for index in part)
        for prompt, part in zip(prompts, parts, strict=True)
    ]
    return [sorted(index for number in share for index in parts[number]) for share in balance(tokens, num_ranks)]
