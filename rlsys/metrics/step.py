"""The numbers of one step: stage times, rewards, lengths, staleness."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import get_args

import numpy as np

from rlsys.types import EpisodeEnd, Reward, RolloutGroup

Metrics = dict[str, float | None]
STAGES = ("rollout", "scoring", "reference", "update", "broadcast")  # in the order of a step


class StageClock:
    """Wall-clock seconds by stage, as `time/<stage>_s`, since the last `start_step`."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._started = time.perf_counter()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Measure one stage."""
        start = time.perf_counter()
        yield
        self.add(name, time.perf_counter() - start)

    def add(self, name: str, seconds: float) -> None:
        """Count seconds measured elsewhere."""
        self.seconds[name] = self.seconds.get(name, 0.0) + seconds

    def start_step(self) -> None:
        """Begin a step: forget what was measured before."""
        self.seconds, self._started = {}, time.perf_counter()

    def metrics(self, *, without_s: float = 0.0) -> Metrics:
        """Return every stage's seconds, and the whole step's without those that do not count as its own."""
        times: Metrics = {f"time/{name}_s": seconds for name, seconds in self.seconds.items()}
        times["time/step_s"] = time.perf_counter() - self._started - without_s
        return times


def rollout_metrics(groups: Sequence[RolloutGroup], policy_version: int) -> Metrics:
    """Return lengths, truncation and staleness of a step's trajectories; only their number when there are none."""
    summaries = [summary for group in groups for summary in group.summaries]
    if not summaries:
        return {"rollout/tokens": 0.0}
    lengths = [summary.num_response_tokens for summary in summaries]
    stale = [policy_version - summary.policy_version for summary in summaries]
    return {
        "rollout/tokens": float(sum(summary.num_tokens for summary in summaries)),
        "rollout/response_tokens/mean": float(np.mean(lengths)),
        "rollout/truncated_fraction": float(np.mean([s.finish_reason == "length" for s in summaries])),
        "rollout/staleness/max": float(max(stale)),
        "rollout/staleness/mean": float(np.mean(stale)),
        **{f"rollout/staleness/count_{value}": float(count) for value, count in sorted(Counter(stale).items())},
    }


def episode_metrics(groups: Sequence[RolloutGroup]) -> Metrics:
    """Return turns, tool calls, ends and the environments' time of a step's episodes; nothing without episodes."""
    summaries = [summary for group in groups for summary in group.summaries if summary.end is not None]
    if not summaries:
        return {}
    ends = Counter(str(summary.end) for summary in summaries)
    return {
        "episodes/turns/mean": float(np.mean([summary.num_turns for summary in summaries])),
        "episodes/turns/max": float(max(summary.num_turns for summary in summaries)),
        "episodes/calls/mean": float(np.mean([summary.num_calls for summary in summaries])),
        "episodes/environment_s/mean": float(np.mean([summary.environment_s for summary in summaries])),
        **{f"episodes/ended/{end}": float(ends[end]) for end in get_args(EpisodeEnd)},
    }


def reward_metrics(rewards: Sequence[Sequence[Reward]]) -> Metrics:
    """Return totals and parts over trajectories with a valid reward, and how many calls ended otherwise."""
    flat = [reward for group in rewards for reward in group]
    if not flat:
        return {}
    totals = [reward.total for reward in flat if reward.total is not None]
    metrics: Metrics = {
        "reward/total/mean": float(np.mean(totals)) if totals else None,
        "reward/total/std": float(np.std(totals)) if totals else None,
    }
    for label in flat[0].parts:
        parts = [reward.parts[label] for reward in flat]
        values = [part.value for part in parts if part.value is not None]
        metrics[f"reward/{label}/mean"] = float(np.mean(values)) if values else None
        for outcome in ("timeout", "error", "not_finite", "not_applicable"):
            metrics[f"reward/{label}/{outcome}"] = float(sum(part.outcome == outcome for part in parts))
    metrics["reward/masked_trajectories"] = float(len(flat) - len(totals))
    return metrics
