"""One reward worker: decodes responses and calls every configured function in its own process."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

from rlsys.config.schema import ScoringConfig
from rlsys.models.resolve import load_tokenizer
from rlsys.rewards import content
from rlsys.rewards.entry import deadline_of, labelled
from rlsys.runtime.chunks import ChunkIndex, picked
from rlsys.runtime.garbage import freeze_started
from rlsys.runtime.spans import Span, SpanRecorder
from rlsys.scoring.call import RewardRequest
from rlsys.scoring.combine import combine
from rlsys.scoring.process import RewardProcess
from rlsys.types import Prompt, Reward, Trajectory


@dataclass(frozen=True)
class Extent:
    """How long the run is, for functions that follow a schedule."""

    num_steps: int = 0
    steps_per_epoch: float = 1.0


class RewardWorker:
    """Lives in a Ray process; `rewards` is the run's list of `{name, weight, ...options}`."""

    def __init__(
        self,
        config: ScoringConfig,
        rewards: Sequence[dict[str, Any]],
        model_path: str,
        trust_remote_code: bool = False,
        extent: Extent | None = None,
    ) -> None:
        self._tokenizer = load_tokenizer(model_path, trust_remote_code=trust_remote_code)
        self._extent = extent or Extent()
        self._weights = {label: float(spec.get("weight", 1.0)) for label, spec in labelled(rewards)}
        self._processes = {
            label: RewardProcess(
                spec,
                call_deadline_s=deadline_of(spec, config.function_deadline_s),
                row_deadline_s=deadline_of(spec, config.row_deadline_s),
                whole_groups=config.whole_groups,
            )
            for label, spec in labelled(rewards)
        }
        self._callers = ThreadPoolExecutor(len(self._processes))  # a function that is late keeps no other waiting
        self._spans = SpanRecorder()
        freeze_started()

    def start(self) -> None:
        """Answers once every function is loaded; raises what keeps one from it."""
        for process in self._processes.values():
            process.start()

    def score(
        self, prompts: Sequence[Prompt], step: int, places: Sequence[ChunkIndex], *chunks: Sequence[Trajectory]
    ) -> tuple[tuple[list[Reward], dict[str, float]], list[str]]:
        """Rewards of the trajectories at `places`, each with its prompt, and the mean of every logged metric; and the
        texts that were scored, to be called for as an object of its own: the driver does not read it."""
        with self._spans.span("score"):
            request = self._request(prompts, step, picked(chunks, [places])[0])
            return self._score(request), [content(completion) for completion in request.completions]

    def take_spans(self) -> list[Span]:
        """What this worker did since the last call."""
        return self._spans.take()

    def _score(self, request: RewardRequest) -> tuple[list[Reward], dict[str, float]]:
        calls = {label: self._callers.submit(process.score, request) for label, process in self._processes.items()}
        answers = {label: call.result() for label, call in calls.items()}
        rewards = []
        for row in range(len(request)):
            parts = {label: parts[row] for label, (parts, _) in answers.items()}
            extra = {
                name: column[row]
                for _, log in answers.values()
                for name, column in log.extra.items()
                if len(column) == len(request)
            }
            rewards.append(combine(parts, self._weights, extra))
        logged: dict[str, list[float]] = {}
        for _, log in answers.values():
            for name, values in log.metrics.items():
                logged.setdefault(name, []).extend(values)
        return rewards, {name: sum(values) / len(values) for name, values in logged.items()}

    def _request(self, owners: Sequence[Prompt], step: int, trajectories: Sequence[Trajectory]) -> RewardRequest:
        ids = [trajectory.response_ids.tolist() for trajectory in trajectories]
        responses = self._tokenizer.batch_decode(ids, skip_special_tokens=True)
        names = sorted({name for owner in owners for name in owner.columns})
        return RewardRequest(
            prompts=[owner.text for owner in owners],
            completions=[
                [{"role": "assistant", "content": text}] if owner.is_conversation else text
                for owner, text in zip(owners, responses, strict=True)
            ],
            completion_ids=ids,
            columns={name: [owner.columns.get(name) for owner in owners] for name in names},
            step=step,
            num_steps=self._extent.num_steps,
            epoch=step / self._extent.steps_per_epoch,
        )
