"""What each stage of a finished run cost, from the files it wrote."""

from __future__ import annotations

import heapq
import json
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from rlsys.errors import RlsysError

RATIOS = np.concatenate([[0.0], np.geomspace(1e-4, 10.0, 160)])
"""Candidates for the cost of one more sequence over that of an iteration."""


@dataclass(frozen=True)
class Sampled:
    """One response as the run sampled it."""

    engine: int
    started_s: float
    finished_s: float
    num_tokens: int


@dataclass(frozen=True)
class EngineCosts:
    """Seconds of an engine: an iteration gives every running sequence a token."""

    iteration: float
    sequence: float  # of each running sequence in an iteration
    request: float  # once a response: its prompt


@dataclass(frozen=True)
class Costs:
    """Everything a simulation needs of a run. Seconds."""

    engine: EngineCosts
    max_num_seqs: int
    reward: float  # a response, on one worker
    reference: float  # a response, on one worker
    update: float  # whatever is trained
    update_token: float  # a trained token, on one rank
    broadcast: float
    other: float  # a step's share of everything else
    groups: tuple[tuple[int, ...], ...]  # response tokens of each group, as sampled
    step_s: float  # measured, for comparison


def read_costs(run_dir: Path, config: Any, skip: int = 2) -> Costs:
    """Fit the costs to a run's metrics and rollouts, leaving out its first steps.

    Raises RlsysError when the run wrote too little of either.
    """
    steps = [row for row in _rows(run_dir / "metrics.jsonl") if row["step"] > skip and "time/update_s" in row]
    files = [run_dir / "rollouts" / f"step-{int(row['step']):06d}.jsonl" for row in steps]
    kept = [(row, _rows(file)) for row, file in zip(steps, files, strict=True) if file.exists()]
    if len(kept) < 3:
        raise RlsysError(
            f"{run_dir} has {len(kept)} steps after the first {skip} with both metrics and rollouts; a simulation "
            "needs 3 or more (logging.rollouts_every=1)"
        )
    responses = [response for _, rollouts in kept for response in rollouts]
    tokens = [sum(response["response_tokens"] for response in rollouts) for _, rollouts in kept]
    update, update_token = _line(tokens, [row["time/update_s"] for row, _ in kept])
    count = len(responses) / len(kept)
    return Costs(
        engine=fit_engine([_sampled(response) for response in responses], config.rollout.max_num_seqs),
        max_num_seqs=config.rollout.max_num_seqs,
        reward=_work(kept, "reward", config.scoring.num_workers) / count,
        reference=_work(kept, "reference", config.reference.num_workers) / count,
        update=update,
        update_token=update_token * config.learner.num_workers,
        broadcast=statistics.median(row["time/broadcast_s"] for row, _ in kept),
        other=statistics.median(_other(row) for row, _ in kept),
        groups=_groups(kept),
        step_s=statistics.median(row["time/step_s"] for row, _ in kept),
    )


def fit_engine(sampled: Sequence[Sampled], max_num_seqs: int) -> EngineCosts:
    """Least squares over responses: the time each took, given who else ran meanwhile.

    While n sequences run an iteration takes `iteration + n * sequence`; each response that starts takes `request`.
    """
    best: tuple[float, EngineCosts] | None = None
    shares = [
        _shares([s for s in sampled if s.engine == engine], max_num_seqs) for engine in {s.engine for s in sampled}
    ]
    for ratio in RATIOS:
        spent = np.concatenate([weights @ (1.0 / (1.0 + ratio * running)) for weights, running, _, _ in shares])
        tokens = np.concatenate([part for _, _, part, _ in shares])
        starts = np.concatenate([part for _, _, _, part in shares])
        found, *_ = np.linalg.lstsq(np.stack([tokens, starts], axis=1), spent, rcond=None)
        iteration, request = (max(float(value), 0.0) for value in found)
        error = float((((tokens * iteration + starts * request) - spent) ** 2).sum() / max((spent**2).sum(), 1e-12))
        costs = EngineCosts(iteration, iteration * float(ratio), request)
        if iteration > 0 and (best is None or error < best[0]):
            best = (error, costs)
    if best is None:
        raise RlsysError("the rollouts do not say how long responses took: their 'started' and 'finished' are alike")
    return best[1]


def _shares(sampled: Sequence[Sampled], max_num_seqs: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Of one engine: seconds of each interval in each response's life [N, K], sequences running in each interval [K],
    tokens [N], and responses that started during each response's life, itself included [N]."""
    starts = np.array([s.started_s for s in sampled])
    ends = np.array([s.finished_s for s in sampled])
    begins = _begins(starts, ends, max_num_seqs)
    edges = np.unique(np.concatenate([begins, ends]))
    left, right = edges[:-1], edges[1:]
    alive = (begins[:, None] <= left[None]) & (ends[:, None] >= right[None])
    running = alive.sum(axis=0)
    slack = 1e-3  # requests of one call start together
    started = ((begins[None] >= begins[:, None] - slack) & (begins[None] < ends[:, None])).sum(axis=1)
    return alive * (right - left)[None], running, np.array([s.num_tokens for s in sampled]), started


def _begins(starts: np.ndarray, ends: np.ndarray, max_num_seqs: int) -> np.ndarray:
    """When each response left the engine's queue, first come first served."""
    begins = starts.copy()
    running: list[float] = []  # heap: when each that has a place is done
    for index in np.argsort(starts, kind="stable"):
        while running and running[0] <= starts[index]:
            heapq.heappop(running)
        if len(running) >= max_num_seqs:
            begins[index] = heapq.heappop(running)
        heapq.heappush(running, float(ends[index]))
    return begins


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Intercept and slope, neither negative: with data that all look alike, everything is slope."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    spread = xs.std() / max(xs.mean(), 1e-12)
    slope = float(((xs - xs.mean()) * (ys - ys.mean())).sum() / max(((xs - xs.mean()) ** 2).sum(), 1e-12))
    intercept = float(ys.mean() - slope * xs.mean())
    if spread < 0.02 or slope < 0 or intercept < 0:
        return 0.0, float(ys.mean() / max(xs.mean(), 1e-12))
    return intercept, slope


def _work(kept: Sequence[tuple[dict[str, Any], Any]], role: str, num_workers: int) -> float:
    """Seconds of work a step that the role's workers did together."""
    busy = [(1.0 - row[f"idle/{role}"]) * row["time/step_s"] for row, _ in kept if f"idle/{role}" in row]
    return statistics.median(busy) * num_workers if busy else 0.0


def _other(row: dict[str, Any]) -> float:
    stages = ("rollout", "reward", "reference", "update", "broadcast")
    return max(0.0, row["time/step_s"] - sum(row.get(f"time/{stage}_s", 0.0) for stage in stages))


def _groups(kept: Sequence[tuple[Any, list[dict[str, Any]]]]) -> tuple[tuple[int, ...], ...]:
    groups: dict[tuple[int, int], list[int]] = {}
    for number, (_, rollouts) in enumerate(kept):
        for response in rollouts:
            groups.setdefault((number, response["group_id"]), []).append(response["response_tokens"])
    return tuple(tuple(lengths) for lengths in groups.values())


def _sampled(response: dict[str, Any]) -> Sampled:
    return Sampled(response["engine"], response["started"], response["finished"], response["response_tokens"])


def _rows(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        raise RlsysError(f"{path} is missing: is this the folder of a run?")
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
