"""`rollouts/step-N.jsonl`: what was sampled and what became of it, for people and for `rlsys report`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.config.schema import LoggingConfig
from rlsys.metrics.formatting import short
from rlsys.types import Experience, Reward, RolloutGroup, TextRef, Trajectory, TrajectorySummary

SURROGATES = "backslashreplace"
"""Half a character, as a model's JSON may hold one, is no UTF-8; its escape is what JSON has for it."""
DIGITS = 4  # significant digits of log-probabilities and advantages: the file is for people, not for training


class Transcript:
    """Writes a file a step.

    Args:
        text_of: a response's text.
        fetch: a group's token arrays; asked for the first `logging.token_groups` groups alone, so that the driver's
            memory does not grow with a step's tokens.
        fetch_estimates: a group's value estimates behind their reference.
    """

    def __init__(
        self,
        run_dir: Path,
        config: LoggingConfig,
        text_of: Callable[[TextRef | None], str],
        fetch: Callable[[RolloutGroup], Sequence[Trajectory]],
        fetch_estimates: Callable[[Any], Sequence[Any]],
    ) -> None:
        self._folder = run_dir / "rollouts"
        self._config = config
        self._text_of = text_of
        self._fetch = fetch
        self._fetch_estimates = fetch_estimates

    def write(
        self,
        step: int,
        groups: Sequence[RolloutGroup],
        rewards: Sequence[Sequence[Reward]],
        trained: Mapping[int, int],
        experience: Experience | None,
    ) -> None:
        """A line for every trajectory.

        Args:
            trained: which of `groups` is which group of `experience`; the others were not trained.
            experience: None where the step trained nothing.
        """
        every = self._config.rollouts_every
        if every == 0 or step % every:
            return
        self._folder.mkdir(exist_ok=True)
        advantages: dict[tuple[int, int], float] = {}
        if experience is not None and experience.estimates is None:  # else every token has its own
            advantages = {(row.group, row.sample): row.advantage for row in experience.rows}
        path = self._folder / f"step-{step:06d}.jsonl"
        with path.open("w", encoding="utf-8", errors=SURROGATES) as file:
            for number, group in enumerate(groups):
                own = trained.get(number)
                of_group = [None if own is None else advantages.get((own, s)) for s in range(len(rewards[number]))]
                rows = self._rows(group, rewards[number], of_group)
                if number < self._config.token_groups:
                    tokens = self._tokens(group, own, experience)
                    rows = [row | {"tokens": of_row} for row, of_row in zip(rows, tokens, strict=True)]
                file.writelines(json.dumps(row, ensure_ascii=False, default=str) + "\n" for row in rows)

    def _rows(
        self, group: RolloutGroup, rewards: Sequence[Reward], advantages: Sequence[float | None]
    ) -> list[dict[str, Any]]:
        columns = zip(group.summaries, rewards, advantages, strict=True)
        return [
            _row(group, summary, reward, self._text_of(reward.response)) | {"advantage": short(advantage, DIGITS)}
            for summary, reward, advantage in columns
        ]

    def _tokens(self, group: RolloutGroup, own: int | None, experience: Experience | None) -> list[dict[str, Any]]:
        """Of every response: ids, the engine's log-probabilities, and advantages where tokens have their own."""
        estimates = None
        if own is not None and experience is not None and experience.estimates is not None:
            estimates = self._fetch_estimates(experience.estimates[own])
        found = []
        for sample, trajectory in enumerate(self._fetch(group)):
            mask = trajectory.loss_mask
            tokens = {"ids": trajectory.response_ids.tolist(), "logprobs": _rounded(trajectory.behavior_logprobs[mask])}
            if estimates is not None:
                tokens["advantages"] = _rounded(estimates[sample].advantages[mask])
            found.append(tokens)
        return found


def _row(group: RolloutGroup, summary: TrajectorySummary, reward: Reward, response: str) -> dict[str, Any]:
    return {
        "group_id": group.group_id,
        "prompt_index": group.prompt.index,
        "prompt": group.prompt.text,
        "response": response,
        "response_tokens": summary.num_response_tokens,
        "finish_reason": summary.finish_reason,
        "policy_version": summary.policy_version,
        "engine": summary.engine,
        "started": summary.started_s,
        "finished": summary.finished_s,
        "reward": reward.total,
        "outcome": reward.outcome,
        **({"extra": dict(reward.extra)} if reward.extra else {}),
        "parts": {
            name: {"value": part.value, "outcome": part.outcome, **({"detail": part.detail} if part.detail else {})}
            for name, part in reward.parts.items()
        },
    }


def _rounded(values: np.ndarray) -> list[float | None]:
    return [short(float(value), DIGITS) for value in values]
