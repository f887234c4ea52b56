"""The records that flow through the training loop, one per stage, all frozen.

Shapes: P prompts per step, G samples per prompt, N = P * G trajectories, L tokens of one trajectory (prompt and
response), B rows and T columns of a padded batch. Arrays are token-aligned: entry t belongs to token t.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Outcome = Literal["ok", "timeout", "error", "not_finite", "not_applicable"]
# Outcomes of a reward call that went wrong. `not_applicable` and `not_finite` are regular answers.
FAILURES = ("error", "timeout")
# Values may lack this much to reach a bar: as floats, 0.6 + 0.3 + 0.1 is less than 1.
ROUNDING = 1e-9
FinishReason = Literal["stop", "length"]
# How an episode ended: by its environment; by a limit of turns or tool calls, of sampled tokens, of the whole row's
# tokens; by a message that the environment could not read; by a failure of the environment; by a deadline.
EpisodeEnd = Literal["completed", "max_turns", "max_tokens", "context_overflow", "parse_error", "env_error", "timeout"]
Messages = list[dict[str, Any]]


@dataclass(frozen=True)
class Prompt:
    """One row of a dataset, ready to be sampled from."""

    index: int  # row number in the dataset
    text: str | Messages  # what reward functions receive as `prompts`: a string, or a list of chat messages
    token_ids: np.ndarray  # [L_prompt] int32
    columns: Mapping[str, Any] = field(default_factory=dict)  # other columns, passed to reward functions by keyword

    @property
    def is_conversation(self) -> bool:
        """Whether the prompt is a list of chat messages."""
        return not isinstance(self.text, str)


@dataclass(frozen=True)
class Sampling:
    """The parameters of sampling; a temperature of 0 is greedy decoding."""

    temperature: float
    max_response_tokens: int
    samples_per_prompt: int
    ignore_eos: bool = False


@dataclass(frozen=True)
class VersionSpan:
    """The policy version that sampled the tokens `[start, end)` of a trajectory."""

    policy_version: int
    start: int
    end: int


@dataclass(frozen=True)
class PolicyTurn:
    """One message of the policy in an episode: the tokens `[start, end)` of its trajectory, and what came of it."""

    start: int
    end: int
    reward: float | None  # the environment's
    engine_s: float  # seconds that sampling took
    environment_s: float  # seconds that the environment took to answer


@dataclass(frozen=True)
class EpisodeRecord:
    """What is known of an episode besides its tokens."""

    end: EpisodeEnd
    opening: Messages  # the messages before the policy's first
    messages: Messages  # those after it, the policy's and the environment's
    turns: tuple[PolicyTurn, ...]
    reward: float | None  # the environment's, in all; None where it gave none
    num_calls: int = 0  # of tools
    metrics: Mapping[str, float] = field(default_factory=dict)  # sums of what the environment gave
    state: Mapping[str, Any] | None = None  # what reward functions see of the environment
    detail: str = ""  # why it failed


@dataclass(frozen=True)
class Trajectory:
    """The tokens of one prompt and one sampled response, or of an episode: then the environment's are among them."""

    token_ids: np.ndarray  # [L] int32
    loss_mask: np.ndarray  # [L] bool: true for tokens that the policy sampled
    behavior_logprobs: np.ndarray  # [L] float32 under the engine's sampling distribution; 0 outside loss_mask
    versions: tuple[VersionSpan, ...]
    finish_reason: FinishReason
    engine: int
    episode: EpisodeRecord | None = None

    @property
    def num_tokens(self) -> int:
        """Number of tokens, prompt included."""
        return int(self.token_ids.shape[0])

    @property
    def response_ids(self) -> np.ndarray:
        """The token ids that the policy sampled."""
        return self.token_ids[self.loss_mask]


@dataclass(frozen=True)
class TrajectorySummary:
    """The facts about a trajectory that the driver needs; token arrays are not among them."""

    num_tokens: int
    num_response_tokens: int
    finish_reason: FinishReason
    policy_version: int  # the oldest version among its tokens
    engine: int
    is_finite: bool = True  # whether every log-probability of the engine is finite
    started_s: float = 0.0  # Unix time when the request reached the engine
    finished_s: float = 0.0  # Unix time when the response was complete
    end: EpisodeEnd | None = None  # of an episode; None for a response alone
    num_turns: int = 1
    num_calls: int = 0
    environment_s: float = 0.0  # seconds that the environment took


@dataclass(frozen=True)
class GroupRequest:
    """One prompt for an engine; its responses are numbered from 0, through all entries of `sampling_params`."""

    request_id: int  # unique among the requests to this engine; another attempt is a new request
    token_ids: np.ndarray  # [L_prompt] int32
    sampling_params: tuple[Sampling, ...]
    stream: int  # seeds the group's random numbers, where rollout.seeded is on
    done: frozenset[int] = frozenset()  # responses that an earlier attempt has sampled
    entropy: tuple[int, ...] = ()  # seeds the random numbers, too
    is_turn: bool = False  # of an episode: its answer comes without the prompt

    @property
    def missing(self) -> dict[int, Sampling]:
        """How each response is sampled that is not there yet, by number."""
        every = [sampling for sampling in self.sampling_params for _ in range(sampling.samples_per_prompt)]
        return {number: sampling for number, sampling in enumerate(every) if number not in self.done}


@dataclass(frozen=True, kw_only=True)
class EpisodeRequest(GroupRequest):
    """One prompt for an episode worker: its responses are episodes, whose turns one engine samples."""

    prompt: Prompt
    engine: Any  # Ray handle
    engine_name: str
    policy_version: int  # that the engine must have, or a newer one


@dataclass(frozen=True)
class Finished:
    """The outcome of one sample of a request."""

    request_id: int
    sample: int
    summary: TrajectorySummary | None  # None when the sample failed
    error: str | None = None
    lost: str = ""  # name of the engine that an episode worker found gone


@dataclass(frozen=True)
class TrajectoryRef:
    """A pointer to a trajectory's token arrays: engines return trajectories in chunks, mixed from any groups."""

    chunk: Any  # Ray reference to a list[Trajectory]
    index: int


@dataclass(frozen=True)
class TextRef:
    """A pointer to a response's text: scoring workers return the texts of one call as a chunk."""

    chunk: Any  # Ray reference to a list[str]
    index: int


@dataclass(frozen=True)
class Sample:
    """One sampled trajectory: its summary, and a reference to its arrays."""

    number: int  # position in its group
    summary: TrajectorySummary
    trajectory: TrajectoryRef


@dataclass(frozen=True)
class RolloutGroup:
    """The G trajectories of one prompt; their token arrays stay in the object store."""

    group_id: int
    prompt: Prompt
    trajectories: tuple[TrajectoryRef, ...]
    summaries: tuple[TrajectorySummary, ...]


@dataclass(frozen=True)
class RewardPart:
    """The answer of one reward function for one trajectory."""

    value: float | None
    outcome: Outcome
    detail: str = ""


@dataclass(frozen=True)
class Reward:
    """The reward of one trajectory."""

    total: float | None  # weighted sum of the parts; None unless all are ok or not applicable and at least one is ok
    parts: Mapping[str, RewardPart]  # by reward function
    outcome: Outcome
    response: TextRef | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)  # what reward functions recorded with `log_extra`


@dataclass(frozen=True)
class ScoringUnit:
    """Trajectories of one prompt that are scored in one call."""

    prompt: Prompt
    samples: tuple[Sample, ...]
    step: int  # the training step, as reward functions see it

    def __len__(self) -> int:
        return len(self.samples)


# One reward per sample, and means of what reward functions recorded with `log_metric`.
UnitScores = tuple[list[Reward], dict[str, float]]


@dataclass(frozen=True)
class ReferenceScores:
    """The reference policy's answer for one group."""

    logprobs: Any  # Ray reference to a list of [L] float32, one array per trajectory
    kl_sums: list[float]  # estimated KL(policy || reference) per response; empty unless rewards contain the KL


@dataclass(frozen=True)
class ScoredGroup:
    """A group with its rewards, and with reference log-probabilities where the algorithm needs them."""

    rollout: RolloutGroup
    rewards: tuple[Reward, ...]  # one per trajectory
    baseline: Reward | None = None  # reward of the greedy response, where the advantage estimator needs one
    reference: ReferenceScores | None = None
    logged: Mapping[str, float] = field(
        default_factory=dict
    )  # means of what reward functions recorded with `log_metric`

    @property
    def group_id(self) -> int:
        """The group's number, counted from the driver's start: again from 0 after a resume."""
        return self.rollout.group_id


@dataclass(frozen=True)
class Coefficients:
    """The coefficients of the KL penalty and the entropy bonus in one step; a checkpoint holds the next step's."""

    kl: float
    entropy: float  # applied in this step
    entropy_level: float = 0.0  # level of an adaptive coefficient, which is applied only while the entropy is low


@dataclass(frozen=True)
class ValueEstimate:
    """The critic's estimates for one trajectory's tokens; every array is [L] float32 and 0 outside the loss mask."""

    values: np.ndarray  # value of the state before each token
    returns: np.ndarray  # the critic's targets
    advantages: np.ndarray


@dataclass(frozen=True)
class NonFiniteTrajectory:
    """A trajectory with NaN or infinity, and the quantity where it appeared."""

    group: int  # position in the experience or in the batch
    sample: int
    what: str


@dataclass(frozen=True)
class ExperienceRow:
    """One trajectory to train on."""

    index: int  # position in the step
    group: int
    sample: int
    advantage: float  # the same for every token, unless there are value estimates
    weight: float  # factor of every token's loss, from the loss aggregation
    num_tokens: int
    num_response_tokens: int


@dataclass(frozen=True)
class Experience:
    """The training data of one step.

    Each minibatch is one optimizer update per epoch. Token arrays stay in the object store: entry i of `trajectories`,
    `ref_logprobs` and `estimates` belongs to the rows of group i.
    """

    minibatches: tuple[tuple[ExperienceRow, ...], ...]
    trajectories: tuple[tuple[TrajectoryRef, ...], ...]
    ref_logprobs: tuple[Any, ...] | None  # Ray references, each to a list of [L] float32
    estimates: tuple[Any, ...] | None  # Ray references, each to a list[ValueEstimate]
    policy_version: int
    coefficients: Coefficients
    metrics: Mapping[str, float] = field(default_factory=dict)  # metrics of the critic's estimates

    @property
    def rows(self) -> tuple[ExperienceRow, ...]:
        """The rows of all minibatches."""
        return tuple(row for minibatch in self.minibatches for row in minibatch)


@dataclass(frozen=True)
class Update:
    """The result of a step's optimizer updates; they were not applied when `nonfinite` names trajectories."""

    metrics: Mapping[str, float | None]
    nonfinite: Sequence[NonFiniteTrajectory] = ()  # their groups are positions in the experience
