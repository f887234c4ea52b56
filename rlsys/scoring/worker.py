"""One scoring worker: it decodes responses and calls every configured function in a process of its own."""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from rlsys.config.schema import ScoringConfig
from rlsys.rewards import content
from rlsys.rewards.entry import ENVIRONMENT, deadline_of, label_rewards, wants_whole_groups
from rlsys.rewards.tags import tags_of
from rlsys.runtime.chunks import ChunkIndex, pick
from rlsys.runtime.garbage import freeze_started
from rlsys.runtime.logs import log_worker
from rlsys.runtime.spans import Span, SpanRecorder
from rlsys.scoring.call import RewardRequest
from rlsys.scoring.caller import Caller
from rlsys.scoring.combine import combine
from rlsys.scoring.decoder import Decoder, decoder_of
from rlsys.scoring.process import RewardProcess
from rlsys.types import EpisodeRecord, Outcome, Prompt, Reward, RewardPart, Trajectory

if TYPE_CHECKING:
    from rlsys.preflight.prepared import Prepared

# What failed in an episode is no reason for a reward.
FAILED: dict[str, Outcome] = {"env_error": "error", "timeout": "timeout"}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ScoringSetup:
    """The part of the configuration that a scoring worker needs."""

    scoring: ScoringConfig
    rewards: Sequence[dict[str, Any]]  # entries `{name, weight, ...options}`
    decoder: Decoder
    whole_groups: bool = False  # whether a function compares a prompt's responses
    tags: str = ""  # a text that contains the tags that the rewards look for
    num_steps: int = 0  # steps of the whole run, for functions that follow a schedule
    steps_per_epoch: float = 1.0
    environment_weight: float = 0.0  # of the environment's own reward
    caller: Caller | None = None  # None: as this process is

    @classmethod
    def from_prepared(cls, prepared: Prepared) -> ScoringSetup:
        """Return the setup of a run."""
        config = prepared.config
        return cls(
            scoring=config.scoring,
            rewards=config.rewards,
            decoder=decoder_of(
                prepared.tokenizer(), prepared.model_path, trust_remote_code=config.model.trust_remote_code
            ),
            whole_groups=wants_whole_groups(config),
            tags=tags_of(config.rewards),
            num_steps=config.train.num_steps,
            # An evaluation has no training prompts.
            steps_per_epoch=len(prepared.train_prompts) / config.train.prompts_per_step or 1.0,
            environment_weight=config.episodes.reward_weight if config.environment is not None else 0.0,
            caller=Caller.here(),
        )


class ScoringWorker:
    """A Ray worker that scores trajectories; it decodes responses, and owns the processes of the reward functions."""

    def __init__(self, setup: ScoringSetup) -> None:
        """Load what decodes responses; the functions' processes are started by `start`."""
        self._setup = setup
        log_worker()
        if setup.caller is not None:
            setup.caller.apply()
        self._decode = setup.decoder.load()
        self._dropped = unseen_tokens(setup.decoder, setup.scoring.skip_special_tokens, setup.tags)
        rewards = label_rewards(setup.rewards)
        self._weights = {label: float(spec.get("weight", 1.0)) for label, spec in rewards}
        self._weights[ENVIRONMENT] = setup.environment_weight
        self._processes = {
            label: RewardProcess(
                spec,
                call_deadline_s=deadline_of(spec, setup.scoring.function_deadline_s),
                row_deadline_s=deadline_of(spec, setup.scoring.row_deadline_s),
                whole_groups=setup.scoring.whole_groups,
            )
            for label, spec in rewards
        }
        self._threads = ThreadPoolExecutor(len(rewards) or 1)  # one per function: a slow one keeps no other waiting
        self._odd_columns: set[str] = set()  # columns of another length than the call, of which the log has one each
        self._spans = SpanRecorder()
        freeze_started()

    def start(self) -> None:
        """Load every function. Raises WorkerError for one that cannot be loaded."""
        # At the same time: most of it is imports.
        list(self._threads.map(RewardProcess.start, self._processes.values()))

    def score(
        self, prompts: Sequence[Prompt], step: int, indices: Sequence[ChunkIndex], *chunks: Sequence[Trajectory]
    ) -> tuple[tuple[list[Reward], dict[str, float]], list[str]]:
        """Score the trajectories at `indices`.

        Args:
            prompts: the prompt of each trajectory.
            step: the step that they are scored for.
            indices: where each trajectory is in the chunks.
            chunks: lists of trajectories, these and others.

        Returns:
            The rewards with the mean of every logged metric; and the responses' texts, which Ray keeps as an object of
            their own, because the driver does not need them.
        """
        with self._spans.span("score"):
            trajectories = pick(chunks, [indices])[0]
            request = self._request(prompts, step, trajectories)
            rewards, logged = self._score(request, [self._own_part(each.episode) for each in trajectories])
            logged |= _means_of_metrics(trajectories)
            return (rewards, logged), [_text(*row) for row in zip(request.completions, trajectories, strict=True)]

    def take_spans(self) -> list[Span]:
        """Return what this worker did since the last call."""
        return self._spans.take()

    def _own_part(self, episode: EpisodeRecord | None) -> dict[str, RewardPart]:
        """Return the environment's own reward, where it counts."""
        if episode is None or not self._setup.environment_weight:
            return {}
        if episode.end in FAILED:
            return {ENVIRONMENT: RewardPart(None, FAILED[episode.end], episode.detail)}
        if episode.reward is None:
            return {ENVIRONMENT: RewardPart(None, "not_applicable")}
        return {ENVIRONMENT: RewardPart(episode.reward, "ok" if math.isfinite(episode.reward) else "not_finite")}

    def _score(
        self, request: RewardRequest, own: Sequence[dict[str, RewardPart]] = ()
    ) -> tuple[list[Reward], dict[str, float]]:
        results = list(self._threads.map(lambda process: process.score(request), self._processes.values()))
        # A column that a function logged belongs to rows only if it has an entry for each.
        columns = [(name, column) for _, log in results for name, column in log.extra.items()]
        extra = {name: column for name, column in columns if len(column) == len(request)}
        for name, column in columns:
            if len(column) != len(request) and name not in self._odd_columns:
                self._odd_columns.add(name)
                logger.warning(
                    "log_extra('%s') got %d values for %d responses; such calls' columns are not written",
                    *(name, len(column), len(request)),
                )
        rewards = [
            combine(
                dict(zip(self._processes, (parts[row] for parts, _ in results), strict=True))
                | (own[row] if own else {}),
                self._weights,
                {name: column[row] for name, column in extra.items()},
            )
            for row in range(len(request))
        ]
        logged: dict[str, list[float]] = {}
        for _, log in results:
            for name, values in log.metrics.items():
                logged.setdefault(name, []).extend(values)
        return rewards, {name: sum(values) / len(values) for name, values in logged.items()}

    def _request(self, prompts: Sequence[Prompt], step: int, trajectories: Sequence[Trajectory]) -> RewardRequest:
        ids = [_completion_ids(trajectory) for trajectory in trajectories]
        seen = [[token for token in response if token not in self._dropped] for response in ids]
        responses = self._decode(seen)
        # Data sets may have different columns; a row without a column has None there.
        names = sorted({name for prompt in prompts for name in prompt.columns})
        return RewardRequest(
            prompts=[prompt.text for prompt in prompts],
            completions=[_completion(*row) for row in zip(prompts, trajectories, responses, strict=True)],
            completion_ids=ids,
            columns={name: [prompt.columns.get(name) for prompt in prompts] for name in names},
            step=step,
            num_steps=self._setup.num_steps,
            epoch=step / self._setup.steps_per_epoch,
            environments=[None if each.episode is None else each.episode.state for each in trajectories],
        )


def _means_of_metrics(trajectories: Sequence[Trajectory]) -> dict[str, float]:
    """Return what environments measured, as the mean over the episodes that have it."""
    found: dict[str, list[float]] = {}
    for trajectory in trajectories:
        for name, value in ({} if trajectory.episode is None else trajectory.episode.metrics).items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(values) for name, values in found.items()}


def _completion_ids(trajectory: Trajectory) -> list[int]:
    """Return the ids after the prompt; of an episode the environment's are among them."""
    sampled = np.flatnonzero(trajectory.loss_mask)
    if trajectory.episode is None or not len(sampled):
        return trajectory.response_ids.tolist()
    return trajectory.token_ids[sampled[0] :].tolist()


def _completion(prompt: Prompt, trajectory: Trajectory, text: str) -> str | list[dict[str, Any]]:
    if trajectory.episode is not None:
        return trajectory.episode.messages
    return [{"role": "assistant", "content": text}] if prompt.is_conversation else text


def _text(completion: str | list[dict[str, Any]], trajectory: Trajectory) -> str:
    """Return what is written of a completion: an episode's messages, with what happened at its turns, as JSON."""
    episode = trajectory.episode
    if episode is None:
        return content(completion)
    turns = [asdict(turn) for turn in episode.turns]
    facts = {"opening": episode.opening, "messages": completion, "turns": turns, "detail": episode.detail}
    return json.dumps(facts, ensure_ascii=False, default=str)


def unseen_tokens(decoder: Decoder, skip: bool | None, tags: str) -> set[int]:
    """Return the ids of the special tokens that rewards do not see.

    Args:
        decoder: what is known of the policy's tokenizer.
        skip: `scoring.skip_special_tokens`.
        tags: a text that contains the tags that the rewards look for.
    """
    if skip is False:
        return set()
    special = decoder.special
    # The tokens that begin, end and pad a text are no tags, even where a reward's file mentions them.
    kept = {number for number, token in special.items() if token in tags and token not in decoder.structural}
    if skip is None and kept:
        names = ", ".join(sorted(special[number] for number in kept))
        logger.info("rewards see these special tokens, for which they look: %s (scoring.skip_special_tokens)", names)
    return set(special) - (set() if skip else kept)
