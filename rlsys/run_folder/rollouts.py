"""`rollouts/step-N.jsonl`: what was sampled and what became of it, for people and for `rlsys report`."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.config.schema import LoggingConfig
from rlsys.metrics.formatting import short
from rlsys.run_folder.jsonl import row_writer
from rlsys.run_folder.layout import ROLLOUTS
from rlsys.types import Experience, Reward, RolloutGroup, ScoredGroup, TextRef, Trajectory, TrajectorySummary

# Significant digits of log-probabilities and advantages: the file is for people, not for training.
DIGITS = 4


class RolloutWriter:
    """The writer of one file per step, with one line per trajectory."""

    def __init__(
        self,
        run_dir: Path,
        config: LoggingConfig,
        text_of: Callable[[TextRef | None], Awaitable[str]],
        fetch: Callable[[RolloutGroup], Awaitable[Sequence[Trajectory]]],
        fetch_estimates: Callable[[Any], Awaitable[Sequence[Any]]],
    ) -> None:
        """Write under `run_dir`.

        Args:
            run_dir: the run's folder.
            config: steps between files, and the number of groups whose tokens are written.
            text_of: gives a response's text.
            fetch: gives a group's token arrays; called only for the first `logging.token_groups` groups, so that the
                driver's memory does not grow with a step's tokens.
            fetch_estimates: gives a group's value estimates behind their reference.
        """
        self._folder = run_dir / ROLLOUTS
        self._config = config
        self._text_of = text_of
        self._fetch = fetch
        self._fetch_estimates = fetch_estimates

    async def write(
        self, step: int, groups: Sequence[ScoredGroup], trained: Sequence[int], experience: Experience
    ) -> None:
        """Write a step's file, if one is due.

        Args:
            step: number of the step.
            groups: everything that was sampled.
            trained: for each group of `experience`, in order, its position in `groups`.
            experience: what was trained; empty where nothing was.
        """
        every = self._config.rollouts_every
        if every == 0 or step % every:
            return
        self._folder.mkdir(exist_ok=True)
        advantages: dict[tuple[int, int], float] = {}
        if experience.estimates is None:  # else every token has its own
            advantages = {(row.group, row.sample): row.advantage for row in experience.rows}
        in_experience = {index: number for number, index in enumerate(trained)}
        with row_writer(self._folder / f"step-{step:06d}.jsonl") as write_rows:
            for index, group in enumerate(groups):
                number = in_experience.get(index)
                rows = await self._rows(group, number, advantages)
                if index < self._config.token_groups:
                    tokens = await self._tokens(group.rollout, number, experience)
                    rows = [row | {"tokens": of_row} for row, of_row in zip(rows, tokens, strict=True)]
                # Group by group: the driver never holds the texts of a whole step.
                write_rows(rows)

    async def _rows(
        self, group: ScoredGroup, number: int | None, advantages: Mapping[tuple[int, int], float]
    ) -> list[dict[str, Any]]:
        rows = []
        for sample, (summary, reward) in enumerate(zip(group.rollout.summaries, group.rewards, strict=True)):
            advantage = None if number is None else advantages.get((number, sample))
            response = await self._text_of(reward.response)
            rows.append(_row(group.rollout, summary, reward, response) | {"advantage": short(advantage, DIGITS)})
        return rows

    async def _tokens(self, group: RolloutGroup, number: int | None, experience: Experience) -> list[dict[str, Any]]:
        """Return each response's token ids and log-probabilities, and advantages where tokens have their own."""
        estimates = None
        if number is not None and experience.estimates is not None:
            estimates = await self._fetch_estimates(experience.estimates[number])
        found = []
        for sample, trajectory in enumerate(await self._fetch(group)):
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
        **({"response": response} if summary.end is None else _episode(summary, response)),
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


def _episode(summary: TrajectorySummary, facts: str) -> dict[str, Any]:
    """Return an episode's conversation, with its last words as the response."""
    found = json.loads(facts) if facts else {"messages": []}
    said = [message["content"] for message in found["messages"] if message["role"] == "assistant"]
    counts = {"end": summary.end, "num_turns": summary.num_turns, "num_calls": summary.num_calls}
    return {"response": said[-1] if said else "", "episode": {**counts, **found}}


def _rounded(values: np.ndarray) -> list[float | None]:
    return [short(float(value), DIGITS) for value in values]
