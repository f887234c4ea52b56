"""Groups that are finished and not trained yet: into a checkpoint, and out of it into the next run's object store."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from rlsys.config.schema import Config
from rlsys.data.stream import PromptStream
from rlsys.orchestrator.from_config import sampling_params_of
from rlsys.orchestrator.orchestrator import Resumed
from rlsys.run_folder.checkpoint import RunState
from rlsys.run_folder.finished_groups import FinishedGroup, write_group
from rlsys.types import (
    ReferenceScores,
    Reward,
    RolloutGroup,
    ScoredGroup,
    TextRef,
    Trajectory,
    TrajectoryRef,
)

logger = logging.getLogger(__name__)


class Store(Protocol):
    """The object store (`rlsys.runtime.calls.Calls`)."""

    async def read(self, ref: Any, *, who: str, what: str) -> Any:
        """Return what is behind a reference."""

    def put(self, value: Any) -> Any:
        """Store a value and return a reference to it."""


class FinishedGroups:
    """The way of finished groups between the object store and the folders of checkpoints."""

    def __init__(
        self,
        config: Config,
        fetch: Callable[[RolloutGroup], Awaitable[Sequence[Trajectory]]],
        text_of: Callable[[TextRef | None], Awaitable[str]],
        store: Store,
    ) -> None:
        """Prepare for both ways.

        Args:
            config: the run's.
            fetch: gives a group's token arrays.
            text_of: gives a response's text.
            store: holds the values behind references.
        """
        self._config = config
        self._fetch = fetch
        self._text_of = text_of
        self._store = store

    async def write(self, folder: Path, groups: Sequence[tuple[int, ScoredGroup]]) -> None:
        """Write groups, with the positions of their prompts, into a checkpoint's folder.

        One by one: the driver never holds the tokens of many. Raises NoRoomError when the disk is full.
        """
        for position, group in groups:
            reference = group.reference
            await asyncio.to_thread(
                write_group,
                folder,
                FinishedGroup(
                    position=position,
                    trajectories=await self._fetch(group.rollout),
                    summaries=group.rollout.summaries,
                    rewards=group.rewards,
                    texts=[await self._text_of(reward.response) for reward in group.rewards],
                    baseline=group.baseline,
                    ref_logprobs=None if reference is None else await self._logprobs(reference),
                    kl_sums=() if reference is None else reference.kl_sums,
                    logged=group.logged,
                    made_with=made_with(self._config),
                ),
            )

    async def _logprobs(self, reference: ReferenceScores) -> Sequence[np.ndarray]:
        what = "reading reference log-probabilities"
        found: Sequence[np.ndarray] = await self._store.read(reference.logprobs, who="the object store", what=what)
        return found

    def usable(self, found: Sequence[FinishedGroup], state: RunState, digest: str) -> list[FinishedGroup]:
        """Return the groups of a checkpoint that the run may train as it is configured now, oldest first.

        Prompts of the others are sampled again: they were made with other options or of other data, are more than
        `train.max_staleness` old, or are missing.
        """
        oldest, now = state.step - self._config.train.max_staleness, made_with(self._config)
        is_same_data = not state.prompts_digest or state.prompts_digest == digest
        fit = [each for each in found if is_same_data and each.made_with == now and _version(each) >= oldest]
        if state.prompts_finished:
            logger.info(
                "%d of %d finished groups of the checkpoint are trained as they are; the others are sampled again",
                len(fit),
                len(state.prompts_finished),
            )
        return sorted(fit, key=_version)

    def resume(self, found: Sequence[FinishedGroup], state: RunState, prompts: PromptStream) -> Resumed:
        """Put the groups that the run may train into the object store; their prompts are pending no more."""
        kept = self.usable(found, state, prompts.digest) if found else []
        prompts.keep([each.position for each in kept])
        return Resumed(
            [(each.position, self._restored(number, each, prompts)) for number, each in enumerate(kept)],
            # An engine may have been ahead of the run's step.
            [min(_version(each), state.step) for each in kept],
            state.ledger or {"trained": state.prompt_cursor - len(state.prompts_pending)},
        )

    def _restored(self, number: int, kept: FinishedGroup, prompts: PromptStream) -> ScoredGroup:
        put = self._store.put
        chunk, texts = put(list(kept.trajectories)), put(list(kept.texts))
        references = tuple(TrajectoryRef(chunk, index) for index in range(len(kept.trajectories)))
        rollout = RolloutGroup(number, prompts.at(kept.position), references, tuple(kept.summaries))
        rewards: tuple[Reward, ...] = tuple(
            replace(reward, response=TextRef(texts, index)) for index, reward in enumerate(kept.rewards)
        )
        reference = None
        if kept.ref_logprobs is not None:
            reference = ReferenceScores(put(list(kept.ref_logprobs)), list(kept.kl_sums))
        return ScoredGroup(rollout, rewards, baseline=kept.baseline, reference=reference, logged=kept.logged)


def made_with(config: Config) -> str:
    """Return a digest of the options that decide how a finished group was sampled, scored and referenced."""
    options = {
        "sampling": [asdict(sampling) for sampling in sampling_params_of(config)],
        "stop": config.rollout.stop,
        "rewards": config.rewards,
        "scoring": config.scoring.whole_groups,
        "kl": asdict(config.algorithm.kl),
        "adapter": config.learner.lora.rank > 0,
        **({"episodes": [config.environment, config.tools, asdict(config.episodes)]} if config.has_episodes else {}),
    }
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _version(group: FinishedGroup) -> int:
    return min(summary.policy_version for summary in group.summaries)
