"""Groups that are finished and not trained yet: into a checkpoint, and out of it into the next run's object store."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from rlsys.config.schema import Config
from rlsys.data.stream import PromptStream
from rlsys.orchestrator.from_config import sampling_params_of
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


class FinishedGroups:
    """The way of finished groups between the object store and the folders of checkpoints."""

    def __init__(
        self,
        config: Config,
        fetch: Callable[[RolloutGroup], Awaitable[Sequence[Trajectory]]],
        text_of: Callable[[TextRef | None], Awaitable[str]],
        read: Callable[[Any], Awaitable[Any]],
        put: Callable[[Any], Any],
    ) -> None:
        """Fetch and put groups one by one: the driver never holds the tokens of many.

        Args:
            config: the run's.
            fetch: gives a group's token arrays.
            text_of: gives a response's text.
            read: gives what is behind a reference.
            put: stores a value and gives a reference to it.
        """
        self._config = config
        self._fetch = fetch
        self._text_of = text_of
        self._read = read
        self._put = put

    async def write(self, folder: Path, groups: Sequence[tuple[int, ScoredGroup]]) -> None:
        """Write groups, with the positions of their prompts, into a checkpoint's folder."""
        for position, group in groups:
            reference = group.reference
            write_group(
                folder,
                FinishedGroup(
                    position=position,
                    trajectories=await self._fetch(group.rollout),
                    summaries=group.rollout.summaries,
                    rewards=group.rewards,
                    texts=[await self._text_of(reward.response) for reward in group.rewards],
                    baseline=group.baseline,
                    ref_logprobs=None if reference is None else await self._read(reference.logprobs),
                    kl_sums=() if reference is None else reference.kl_sums,
                    logged=group.logged,
                    made_with=made_with(self._config),
                ),
            )

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

    def restore(self, kept: Sequence[FinishedGroup], prompts: PromptStream) -> list[tuple[int, ScoredGroup]]:
        """Put groups into the object store; return them, numbered from 0, with the positions of their prompts."""
        return [(each.position, self._restored(number, each, prompts)) for number, each in enumerate(kept)]

    def _restored(self, number: int, kept: FinishedGroup, prompts: PromptStream) -> ScoredGroup:
        chunk, texts = self._put(list(kept.trajectories)), self._put(list(kept.texts))
        references = tuple(TrajectoryRef(chunk, index) for index in range(len(kept.trajectories)))
        rollout = RolloutGroup(number, prompts.at(kept.position), references, tuple(kept.summaries))
        rewards: tuple[Reward, ...] = tuple(
            replace(reward, response=TextRef(texts, index)) for index, reward in enumerate(kept.rewards)
        )
        reference = None
        if kept.ref_logprobs is not None:
            reference = ReferenceScores(self._put(list(kept.ref_logprobs)), list(kept.kl_sums))
        return ScoredGroup(rollout, rewards, baseline=kept.baseline, reference=reference, logged=kept.logged)


def versions_of(kept: Sequence[FinishedGroup], policy_version: int) -> list[int]:
    """Return the version that each group counts as started under; an engine may have been ahead of the run's step."""
    return [min(_version(each), policy_version) for each in kept]


def made_with(config: Config) -> str:
    """Return a digest of the options that decide how a finished group was sampled, scored and referenced."""
    options = {
        "sampling": [asdict(sampling) for sampling in sampling_params_of(config)],
        "stop": config.rollout.stop,
        "rewards": config.rewards,
        "scoring": config.scoring.whole_groups,
        "kl": asdict(config.algorithm.kl),
        "adapter": config.learner.lora.rank > 0,
    }
    return hashlib.sha256(json.dumps(options, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _version(group: FinishedGroup) -> int:
    return min(summary.policy_version for summary in group.summaries)
