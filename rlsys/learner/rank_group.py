"""The ranks of one trained model as the driver sees them: called together, and one failing rank fails the call."""

from __future__ import annotations

import asyncio
import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rlsys.config.learner_schema import LearnerConfig
from rlsys.errors import DeadlineError
from rlsys.learner.rank import Rank
from rlsys.learner.rank_batch import RankBatch
from rlsys.learner.saving import raise_failures
from rlsys.run_folder.checkpoint import converted_path
from rlsys.runtime.balance import balance
from rlsys.runtime.chunks import chunks_of
from rlsys.runtime.cluster import Cluster
from rlsys.runtime.room import Demand
from rlsys.types import Experience, ExperienceRow, NonFiniteTrajectory, Update

ADDRESS_DEADLINE_S = 300.0
NOTHING: Mapping[str, Any] = MappingProxyType({})
MAX_POLL_S = 1.0  # between two looks whether the ranks have written their files


class RankGroup:
    """The ranks of one model: it starts them, divides each step's work among them, and calls them together.

    Calls reach every rank in the order in which the driver makes them, so collectives on the ranks match.
    """

    METRICS = ""  # first word of its metrics

    def __init__(
        self, cluster: Cluster, worker: type[Rank], config: LearnerConfig, setup: Any, demands: Sequence[Demand]
    ) -> None:
        self._calls = cluster.calls
        self._config = config
        self._name = worker.TAG
        # In the order of ranks: the first is rank 0, whose results count where all ranks return the same.
        self._workers = {demand.name: cluster.start(worker, demand, rank, setup) for rank, demand in enumerate(demands)}

    async def start(self, deadline_s: float) -> None:
        """Build the engine on every rank."""
        host, port = await self.address()
        self._on_started(
            await self._each("start", host, port, what=f"starting the {self._name}", deadline_s=deadline_s)
        )

    async def update(self, experience: Experience, dump_to: str | None = None) -> Update:
        """Train on `experience`; with `dump_to` write what `rlsys replay` needs into that folder.

        Returns:
            Metrics, which are the same on every rank, and every rank's trajectories with NaN or infinity. When only the
            gradient is not finite, they are all trajectories of the step.
        """
        shares = [divide(rows, len(self._workers)) for rows in experience.minibatches]
        num_tokens = tuple(sum(row.num_response_tokens for row in rows) for rows in experience.minibatches)
        chunks, chunk_indices = chunks_of(experience.trajectories)
        arrays = [*chunks, *(experience.ref_logprobs or ()), *(experience.estimates or ())]
        calls = {}
        for rank, (name, worker) in enumerate(self._workers.items()):
            parts = zip(experience.minibatches, shares, strict=True)
            batch = RankBatch(
                minibatches=tuple(tuple(rows[index] for index in split[rank]) for rows, split in parts),
                num_tokens=num_tokens,
                coefficients=experience.coefficients,
                policy_version=experience.policy_version,
                chunk_indices=chunk_indices,
                has_reference=experience.ref_logprobs is not None,
                has_estimates=experience.estimates is not None,
                dump_to=dump_to,
            )
            calls[name] = worker.update.remote(batch, *arrays)
        results = await self._calls.gather(calls, what=f"{self._name} update", deadline_s=self._config.deadline_s)
        metrics: dict[str, float] = next(iter(results.values()))[0]
        nonfinite = [trajectory for _, found in results.values() for trajectory in found]
        if metrics[f"{self.METRICS}/not_applied"] and not nonfinite:
            nonfinite = [NonFiniteTrajectory(row.group, row.sample, "gradient") for row in experience.rows]
        return Update(metrics, nonfinite)

    async def check_sees(self, file: str) -> None:
        """Raise RlsysError unless every rank sees a file that the driver has written."""
        await self._each("check_sees", file, what=f"looking for {file}")

    async def save(self, folder: str, on_begun: Callable[[], None] | None = None) -> None:
        """Write a checkpoint; every rank writes its part.

        Args:
            folder: made if it does not exist.
            on_begun: called once every rank holds its state for the thread that copies and writes it; the group may
                train from then on. None: no copy is made, and the files are written when `save` returns.

        Raises:
            NoRoomError: the disk is full.
        """
        Path(folder).mkdir(parents=True, exist_ok=True)  # here: ranks on a node that does not share it notice
        await self._each("save", folder, on_begun is not None, what=f"saving the {self._name}")
        if on_begun is not None:
            on_begun()
        await self._wait_until_saved()

    async def _wait_until_saved(self) -> None:
        """Ask the ranks again and again: a call that waited for the files would hold up the updates behind it."""
        what, poll_s = f"writing the {self._name}'s checkpoint", MAX_POLL_S / 32
        deadline_s = 2 * self._config.deadline_s  # an update may be ahead of the calls on every rank
        until = asyncio.get_running_loop().time() + deadline_s
        while True:
            # They mostly wait, for an update; the ranks are not busy with them.
            found = await self._calls.gather(self._begin("saved"), what=what, deadline_s=deadline_s, is_work=False)
            late = [name for name, failures in found.items() if failures is None]
            if not late:
                return raise_failures([failure for failures in found.values() for failure in failures])
            if asyncio.get_running_loop().time() > until:
                raise DeadlineError(f"{what}: not written within {deadline_s:g} s by {', '.join(late)}")
            await asyncio.sleep(poll_s)
            poll_s = min(2 * poll_s, MAX_POLL_S)

    async def load(self, folder: str, written_with: Mapping[str, Any] = NOTHING) -> None:
        """Restore a checkpoint on every rank.

        Args:
            folder: what `save` wrote.
            written_with: options of the run that wrote it, by dotted keys. Where another number of ranks or another
                ZeRO stage wrote it, rank 0 converts it first, beside it.
        """
        if not self._is_of_others(written_with):
            await self._each("load", folder, False, what=f"loading {folder}")
            return
        converted = str(converted_path(Path(folder)))
        name, lead = next(iter(self._workers.items()))
        what = f"converting {folder}"
        try:
            await self._calls.result(
                lead.convert.remote(folder, converted), who=name, what=what, deadline_s=self._config.deadline_s
            )
            await self._each("load", converted, True, what=f"loading {folder}")
        finally:
            await asyncio.to_thread(shutil.rmtree, converted, ignore_errors=True)

    def _is_of_others(self, written_with: Mapping[str, Any]) -> bool:
        """Return whether a checkpoint is divided otherwise than this group; without ZeRO it is not divided."""
        now = {f"{self._name}.{option}": getattr(self._config, option) for option in ("num_workers", "zero_stage")}
        return self._config.zero_stage > 0 and any(written_with.get(key, value) != value for key, value in now.items())

    async def stop(self, deadline_s: float) -> None:
        """Leave the process group on every rank."""
        await self._each("stop", what=f"stopping the {self._name}", deadline_s=deadline_s)

    async def address(self) -> tuple[str, int]:
        """Return rank 0's node address and a free port there."""
        name, lead = next(iter(self._workers.items()))
        host, port = await self._calls.result(
            lead.address.remote(), who=name, what=f"{self._name} address", deadline_s=ADDRESS_DEADLINE_S
        )
        return host, port

    def begin_take_spans(self) -> dict[str, Any]:
        """Fetch what each rank did since the last call."""
        return self._begin("take_spans")

    def begin_placement(self) -> dict[str, Any]:
        """Ask each rank how its model lies, and where."""
        return self._begin("placement")

    def _on_started(self, info: Any) -> None:
        """Take what rank 0 returned from its start."""

    def _begin(self, method: str, *args: Any) -> dict[str, Any]:
        return {name: getattr(worker, method).remote(*args) for name, worker in self._workers.items()}

    async def _each(self, method: str, *args: Any, what: str, deadline_s: float | None = None) -> Any:
        """Call every rank; returns rank 0's result."""
        results = await self._calls.gather(
            self._begin(method, *args), what=what, deadline_s=deadline_s or self._config.deadline_s
        )
        return next(iter(results.values()))


def divide(rows: Sequence[ExperienceRow], num_ranks: int) -> list[list[int]]:
    """Return the indices of each rank's rows, balanced by tokens.

    A prompt's responses stay together, since they share its tokens. Groups are cut only where there are too few of
    them to balance.
    """
    groups: dict[int, list[int]] = {}
    for index, row in enumerate(rows):
        groups.setdefault(row.group, []).append(index)
    # At least two parts per rank, so that `balance` can even them out: 3 groups on 4 ranks are cut into 3 parts each.
    # With two groups or more per rank none is cut.
    num_cuts = math.ceil(2 * num_ranks / max(len(groups), 1)) if num_ranks > 1 else 1
    parts = [part for members in groups.values() for cut in range(num_cuts) if (part := members[cut::num_cuts])]
    prompts = [rows[part[0]].num_tokens - rows[part[0]].num_response_tokens for part in parts]
    tokens = [
        prompt + sum(rows[index].num_response_tokens for index in part)
        for prompt, part in zip(prompts, parts, strict=True)
    ]
    return [sorted(index for number in share for index in parts[number]) for share in balance(tokens, num_ranks)]
