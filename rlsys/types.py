"""The records that flow through the loop, one per stage, all frozen.

Legend for shapes: P prompts per step, G samples per prompt, N = P * G trajectories, L tokens of one trajectory
(prompt and response), B rows and T columns of a padded batch. Arrays are token-aligned: index t speaks of token t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Outcome = Literal["ok", "timeout", "error", "not_finite", "not_applicable"]
FAILURES = ("error", "timeout")
"""Outcomes of a call that went wrong; `not_applicable` and `not_finite` are answers."""
FinishReason = Literal["stop", "length"]
Messages = list[dict[str, str]]


@dataclass(frozen=True)
class Prompt:
    """One row of a dataset, ready to be sampled from.

    `text` is what rewards see as `prompts`: a plain string, or a list of chat messages.
    `columns` are the row's other columns, handed to reward functions as keyword arguments.
    """

    index: int
    text: str | Messages
    token_ids: np.ndarray  # [L_prompt] int32
    columns: Mapping[str, Any] = field(default_factory=dict)

    @property
    def is_conversation(self) -> bool:
        return not isinstance(self.text, str)


@dataclass(frozen=True)
class Sampling:
    """How an engine draws responses. `temperature=0` is greedy."""

    temperature: float
    max_response_tokens: int
    samples_per_prompt: int
    ignore_eos: bool = False


@dataclass(frozen=True)
class VersionSpan:
    """Policy version of the tokens `[start, end)` of a trajectory."""

    policy_version: int
    start: int
    end: int


@dataclass(frozen=True)
class Trajectory:
    """One prompt plus what was sampled."""

    token_ids: np.ndarray  # [L] int32
    loss_mask: np.ndarray  # [L] bool: tokens that the policy sampled
    behavior_logprobs: np.ndarray  # [L] float32, of the engine's sampling distribution; 0 outside loss_mask
    versions: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    engine: int

    @property
    def num_tokens(self) -> int:
        return int(self.token_ids.shape[0])

    @property
    def response_ids(self) -> np.ndarray:
        return self.token_ids[self.loss_mask]


@dataclass(frozen=True)
class TrajectorySummary:
    """What the driver knows of a trajectory: no token arrays."""

    num_tokens: int
    num_response_tokens: int
    finish_reason: FinishReason
    policy_version: int  # the oldest version among its tokens
    engine: int
    is_finite: bool = True  # every log-probability that the engine gave
    started_s: float = 0.0  # asked for and handed out, in seconds since the epoch
    finished_s: float = 0.0


@dataclass(frozen=True)
class GroupRequest:
    """One prompt for an engine to sample responses to: those of each entry of `plan`, numbered through."""

    request_id: int  # unique among all requests to this engine; a further attempt is a new request
    token_ids: np.ndarray  # [L_prompt] int32
    plan: tuple[Sampling, ...]
    stream: int  # with the sample's number: its stream of random numbers, where rollout.seeded gives it its own

    @property
    def num_samples(self) -> int:
        return sum(sampling.samples_per_prompt for sampling in self.plan)


@dataclass(frozen=True)
class Finished:
    """One sample of a request, generated or failed."""

    request_id: int
    sample: int
    summary: TrajectorySummary | None  # None for a sample that failed
    error: str | None = None


@dataclass(frozen=True)
class TrajectoryRef:
    """Where a trajectory's token arrays are. Engines hand out what has finished in chunks, of whichever groups."""

    chunk: Any  # reference to list[Trajectory]
    index: int


@dataclass(frozen=True)
class TextRef:
    """Where a response's text is. Reward workers leave the texts of a call in a chunk."""

    chunk: Any  # reference to list[str]
    index: int


@dataclass(frozen=True)
class Sample:
    """One sampled trajectory as the driver knows it."""

    number: int  # in its group
    summary: TrajectorySummary
    trajectory: TrajectoryRef


@dataclass(frozen=True)
class RolloutGroup:
    """The G trajectories of one prompt; their token arrays stay in the object store behind `trajectories`."""

    group_id: int
    prompt: Prompt
    trajectories: tuple[TrajectoryRef, ...]
    summaries: tuple[TrajectorySummary, ...]


@dataclass(frozen=True)
class RewardPart:
    """What one reward function said of one trajectory."""

    value: float | None
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class Reward:
    """Weighted sum of the parts. `total` is None unless every part is ok or not applicable and one is ok."""

    total: float | None
    parts: Mapping[str, RewardPart]
    outcome: Outcome
    response: TextRef | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # what functions noted of it with TRL's `log_extra`


@dataclass(frozen=True)
class ScoringUnit:
    """Trajectories of one prompt that are scored in one call."""

    prompt: Prompt
    samples: tuple[Sample, ...]
    step: int  # that reward functions see

    def __len__(self) -> int:
        return len(self.samples)


Scores = tuple[list[Reward], dict[str, float]]  # one reward per sample; means of what reward functions logged


@dataclass(frozen=True)
class ReferenceScores:
    """What the reference policy gives one group."""

    logprobs: Any  # reference to a list of [L] float32, one per trajectory
    kl_sums: list[float]  # sampling policy to reference, summed over each response; empty unless the reward reads it


@dataclass(frozen=True)
class ScoredGroup:
    """A group that is sampled and scored, and referenced where the algorithm asks for it."""

    rollout: RolloutGroup
    rewards: tuple[Reward, ...]  # one per trajectory
    baseline: Reward | None = None  # of the greedy response, where the estimator asks for one
    reference: ReferenceScores | None = None
    logged: Mapping[str, float] = field(default_factory=dict)  # means of what reward functions logged meanwhile

    @property
    def group_id(self) -> int:
        return self.rollout.group_id


@dataclass(frozen=True)
class Coefficients:
    """Of the KL penalty and the entropy bonus in one step; a checkpoint holds those of the next."""

    kl: float
    entropy: float  # as applied
    entropy_level: float = 0.0  # of an adaptive one, which is not applied while the entropy is high


@dataclass(frozen=True)
class ValueEstimate:
    """What the critic says of one trajectory's tokens, [L] float32 each, 0 outside the loss mask."""

    values: np.ndarray  # of the state before each token
    returns: np.ndarray  # what the critic is to learn
    advantages: np.ndarray


@dataclass(frozen=True)
class NonFiniteTrajectory:
    """A trajectory that brought NaN or infinity, and where it was seen."""

    group: int  # position in the experience, or in the batch
    sample: int
    what: str


@dataclass(frozen=True)
class ExperienceRow:
    """One trajectory to train on."""

    index: int  # position in the step
    group: int
    sample: int
    advantage: float  # of every token, unless there are value estimates
    weight: float  # of every token's loss: the aggregation's
    num_tokens: int
    num_response_tokens: int


@dataclass(frozen=True)
class Experience:
    """What one step trains on; entry i of `trajectories` and of the tuples of references belongs to rows with group i.

    Each minibatch is one optimizer update a pass. Token arrays stay in the object store.
    """

    minibatches: tuple[tuple[ExperienceRow, ...], ...]
    trajectories: tuple[tuple[TrajectoryRef, ...], ...]
    ref_logprobs: tuple[Any, ...] | None  # each to a list of [L] float32
    estimates: tuple[Any, ...] | None  # each to list[ValueEstimate]
    policy_version: int
    coefficients: Coefficients
    metrics: Mapping[str, float] = field(default_factory=dict)  # of the critic's estimates

    @property
    def rows(self) -> tuple[ExperienceRow, ...]:
        return tuple(row for minibatch in self.minibatches for row in minibatch)


@dataclass(frozen=True)
class Update:
    """What a step's optimizer updates gave. With trajectories in `nonfinite` the step was not applied as a whole."""

    metrics: Mapping[str, float | None]
    nonfinite: Sequence[NonFiniteTrajectory] = ()  # their groups are positions in the experience
