"""The cost of each stage of a finished run, fitted to the metrics and rollouts that it wrote."""

from __future__ import annotations

import heapq
import itertools
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from rlsys.algorithms.requirements import learner_is_reference
from rlsys.config.schema import Config
from rlsys.errors import RlsysError
from rlsys.metrics.step import STAGES, Metrics
from rlsys.run_folder.checkpoint import step_of
from rlsys.run_folder.folder import RunFolder
from rlsys.run_folder.jsonl import json_rows

# Candidates for the cost of one more running sequence, relative to the cost of an iteration.
RATIOS = np.concatenate([[0.0], np.geomspace(1e-4, 10.0, 160)])


@dataclass(frozen=True)
class SampledResponse:
    """One response of the run: which engine sampled it, when, and how long it is."""

    engine: int
    started_s: float
    finished_s: float
    num_tokens: int


@dataclass(frozen=True)
class EngineCosts:
    """Seconds of an engine's work. An iteration gives every running sequence one token."""

    iteration: float  # per iteration, however many sequences run
    sequence: float  # per running sequence and iteration
    request: float  # per response, once: its prompt


@dataclass(frozen=True)
class Costs:
    """Everything that a simulation takes from a run. All times are in seconds."""

    engine: EngineCosts
    max_num_seqs: int
    scoring: float  # per response, on one worker
    reference: float  # per response, on one worker; 0 without reference workers
    update: float  # learner, per step, whatever is trained; with the reference if the learner computes it
    update_token: float  # learner, per trained token, on one rank
    broadcast: float  # per step
    other: float  # per step: everything else
    groups: tuple[tuple[int, ...], ...]  # response tokens of each group, as sampled
    step_s: float  # measured time per step, for comparison


def read_costs(run: RunFolder, config: Config, skip: int = 2) -> Costs:
    """Fit the costs to a run's metrics and rollouts.

    Args:
        run: the folder of the run.
        config: the run's configuration.
        skip: how many of the first steps are left out: they also compile and fill caches.

    Raises:
        RlsysError: the run wrote too few steps of either.
    """
    files = {step_of(file): file for file in run.rollouts}
    measured = [row for row in run.rows if _value(row, "step") > skip and row.get("time/update_s") is not None]
    rows = [row for row in measured if int(_value(row, "step")) in files]
    if len(rows) < 3:
        raise RlsysError(
            f"{run.path} has {len(rows)} steps after the first {skip} with both metrics and rollouts; a simulation "
            "needs 3 or more: run it with logging.rollouts_every=1"
        )
    rollouts = [[response for _, response in json_rows(files[int(_value(row, "step"))])] for row in rows]
    responses = [response for step in rollouts for response in step]
    tokens = [sum(response["response_tokens"] for response in step) for step in rollouts]
    # With an adapter the learner also computes the reference: as work of the learner it slows down with fewer ranks.
    learner_stages = ("update", "reference") if learner_is_reference(config) else ("update",)
    update, update_token = _line(tokens, [_stages_s(row, learner_stages) for row in rows])
    per_step = len(responses) / len(rows)
    return Costs(
        engine=fit_engine([_sampled(response) for response in responses], config.rollout.max_num_seqs),
        max_num_seqs=config.rollout.max_num_seqs,
        scoring=_work(rows, "scoring", config.scoring.num_workers) / per_step,
        reference=_work(rows, "reference", config.reference.num_workers) / per_step,
        update=update,
        update_token=update_token * config.learner.num_workers,
        broadcast=statistics.median(_stages_s(row, ("broadcast",)) for row in rows),
        other=statistics.median(max(0.0, _stages_s(row, ("step",)) - _stages_s(row, STAGES)) for row in rows),
        groups=_groups(rollouts),
        step_s=statistics.median(_stages_s(row, ("step",)) for row in rows),
    )


def fit_engine(sampled: Sequence[SampledResponse], max_num_seqs: int) -> EngineCosts:
    """Fit an engine's costs by least squares to the time that each response took, given what else ran meanwhile.

    While n sequences run, an iteration takes `iteration + n * sequence`; each response that starts takes `request`.
    For a fixed ratio r = sequence / iteration the model is linear: in an interval of s seconds with n sequences an
    engine does s / (1 + r * n) / iteration iterations. So the ratios are searched, and the rest is solved for each.
    """
    best: tuple[float, EngineCosts] | None = None
    engines = [
        _intervals([s for s in sampled if s.engine == engine], max_num_seqs) for engine in {s.engine for s in sampled}
    ]
    for ratio in RATIOS:
        spent = np.concatenate([seconds @ (1.0 / (1.0 + ratio * running)) for seconds, running, _, _ in engines])
        tokens = np.concatenate([part for _, _, part, _ in engines])
        starts = np.concatenate([part for _, _, _, part in engines])
        iteration, request = nonnegative([tokens, starts], spent)
        error = float((((tokens * iteration + starts * request) - spent) ** 2).sum() / max((spent**2).sum(), 1e-12))
        costs = EngineCosts(iteration, iteration * float(ratio), request)
        if iteration > 0 and (best is None or error < best[0]):
            best = (error, costs)
    if best is None:
        raise RlsysError(
            "the rollouts do not show how long responses took: 'started' and 'finished' are equal in every row"
        )
    return best[1]


def _intervals(
    sampled: Sequence[SampledResponse], max_num_seqs: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Divide one engine's time into K intervals in which the same of its N responses run.

    Returns:
        The seconds of each interval if the response runs in it, else 0 [N, K]; how many responses run in each interval
        [K]; each response's tokens [N]; and how many responses started while it ran, itself included [N].
    """
    starts = np.array([s.started_s for s in sampled])
    ends = np.array([s.finished_s for s in sampled])
    begins = _begins(starts, ends, max_num_seqs)
    edges = np.unique(np.concatenate([begins, ends]))
    left, right = edges[:-1], edges[1:]
    # Between two neighbouring edges nothing begins or ends, so the number of running sequences is constant.
    alive = (begins[:, None] <= left[None]) & (ends[:, None] >= right[None])
    running = alive.sum(axis=0)
    slack = 1e-3  # requests that arrive together start within a millisecond
    started = ((begins[None] >= begins[:, None] - slack) & (begins[None] < ends[:, None])).sum(axis=1)
    return alive * (right - left)[None], running, np.array([s.num_tokens for s in sampled]), started


def _begins(starts: np.ndarray, ends: np.ndarray, max_num_seqs: int) -> np.ndarray:
    """Return when each response left the engine's queue, which is first come, first served."""
    begins = starts.copy()
    running: list[float] = []  # heap: when each running response ends
    for index in np.argsort(starts, kind="stable"):
        while running and running[0] <= starts[index]:
            heapq.heappop(running)
        if len(running) >= max_num_seqs:  # it waited for the first running response to end
            begins[index] = heapq.heappop(running)
        heapq.heappush(running, float(ends[index]))
    return begins


def _line(x: Sequence[float], y: Sequence[float]) -> tuple[float, float]:
    """Return intercept and slope, neither negative; if all x are nearly equal, everything is slope."""
    xs, ys = np.asarray(x, dtype=float), np.asarray(y, dtype=float)
    # Steps of nearly equal size, or of noise, cannot separate a constant part from one per token.
    spread = xs.std() / max(xs.mean(), 1e-12)
    if spread < 0.02:
        return 0.0, float(ys.mean() / max(xs.mean(), 1e-12))
    intercept, slope = nonnegative([np.ones_like(xs), xs], ys)
    return intercept, slope


def nonnegative(columns: Sequence[np.ndarray], y: np.ndarray) -> list[float]:
    """Return one coefficient per column [N], none negative, with the least squared distance of their sum from y [N].

    Costs cannot be negative; setting those of an unconstrained fit to 0 would leave the others wrong. The best fit with
    some columns left out is the constrained one, and there are few columns.
    """
    best, least = [0.0] * len(columns), float((y**2).sum())
    for used in map(np.array, itertools.product([False, True], repeat=len(columns))):
        if not used.any():
            continue
        matrix = np.stack(columns, axis=1)[:, used]
        found = np.zeros(len(columns))
        found[used] = np.linalg.lstsq(matrix, y, rcond=None)[0]
        distance = float(((matrix @ found[used] - y) ** 2).sum())
        if (found >= 0).all() and distance < least:
            best, least = [float(value) for value in found], distance
    return best


def _value(row: Metrics, key: str) -> float:
    """Return a metric's value, 0 if it is missing or was not finite."""
    return row.get(key) or 0.0


def _stages_s(row: Metrics, stages: Sequence[str]) -> float:
    """Return the seconds that a step's stages took together."""
    return sum(_value(row, f"time/{stage}_s") for stage in stages)


def _work(rows: Sequence[Metrics], role: str, num_workers: int) -> float:
    """Return the seconds of work that the role's workers did together in the median step."""
    busy = [(1.0 - idle) * _stages_s(row, ("step",)) for row in rows if (idle := row.get(f"idle/{role}")) is not None]
    return statistics.median(busy) * num_workers if busy else 0.0


def _groups(rollouts: Sequence[Sequence[dict[str, Any]]]) -> tuple[tuple[int, ...], ...]:
    """Return the response lengths of every group of every step."""
    groups: dict[tuple[int, int], list[int]] = {}
    for step, responses in enumerate(rollouts):
        for response in responses:
            groups.setdefault((step, response["group_id"]), []).append(response["response_tokens"])
    return tuple(tuple(lengths) for lengths in groups.values())


def _sampled(response: dict[str, Any]) -> SampledResponse:
    return SampledResponse(response["engine"], response["started"], response["finished"], response["response_tokens"])
