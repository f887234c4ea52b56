"""The dump of one step: everything that `rlsys replay` needs to compute it again, and what it came to.

It holds the batch as the ranks were given it, the policy's setup, and fingerprints of the weights before the step and
of every update's gradient. The weights themselves are those of a checkpoint.
"""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rlsys.learner.fingerprint import Fingerprint, fingerprints
from rlsys.learner.rank_batch import RankBatch, TrainItem
from rlsys.learner.setup import PolicySetup
from rlsys.run_folder.replay import write_arrays, write_record
from rlsys.types import Coefficients, ExperienceRow, Trajectory, ValueEstimate
from rlsys.weights.gather import gather_parameters

ESTIMATES = ("values", "returns", "advantages")


@dataclass
class UpdateRecord:
    """The numbers of one optimizer update."""

    loss: float
    grad_norm: float
    gradients: dict[str, Fingerprint] = field(default_factory=dict)  # before clipping


@dataclass
class StepRecord:
    """The numbers of one step."""

    weights: dict[str, Fingerprint]  # before it
    updates: list[UpdateRecord]

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> StepRecord:
        """Return the record that `asdict` turned into plain values."""

        def prints(of: dict[str, Any]) -> dict[str, Fingerprint]:
            return {name: Fingerprint(**value) for name, value in of.items()}

        updates = [UpdateRecord(one["loss"], one["grad_norm"], prints(one["gradients"])) for one in values["updates"]]
        return cls(prints(values["weights"]), updates)


class StepRecorder:
    """The recorder of one step on one rank; under ZeRO all ranks must record together."""

    def __init__(self, engine: Any) -> None:
        """Take fingerprints of the weights as they are."""
        self._engine = engine
        self._gradients: list[dict[str, Fingerprint]] = []
        self._random = torch.get_rng_state().numpy()
        self._weights = fingerprints(self._whole_weights())

    def _whole_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        for name, parameter in self._trained():
            with gather_parameters([parameter]):
                yield name, parameter

    def _trained(self) -> list[tuple[str, torch.nn.Parameter]]:
        return [(name, one) for name, one in self._engine.module.named_parameters() if one.requires_grad]

    @contextlib.contextmanager
    def gradients(self) -> Iterator[None]:
        """Take fingerprints of the gradient in every optimizer step of the block.

        DeepSpeed reduces gradients over the ranks inside of its `step`, and drops them there too, so they are read
        between the two.
        """
        from deepspeed.utils import safe_get_full_grad

        apply: Callable[..., Any] = self._engine._take_model_step

        def read_and_apply(*args: Any, **options: Any) -> Any:
            self._gradients.append(fingerprints((name, safe_get_full_grad(one)) for name, one in self._trained()))
            return apply(*args, **options)

        self._engine._take_model_step = read_and_apply
        try:
            yield
        finally:
            del self._engine._take_model_step

    def record(self, updates: Sequence[dict[str, float]]) -> StepRecord:
        """Return the step's record, from the metrics of its updates."""
        numbers = zip(updates, self._gradients, strict=True)
        return StepRecord(
            self._weights, [UpdateRecord(m["policy/loss"], m["policy/grad_norm"], found) for m, found in numbers]
        )

    def dump_arrays(self, folder: Path, rank: int, items: Sequence[Sequence[TrainItem]]) -> None:
        """Write this rank's items of each minibatch."""
        flat = [item for minibatch in items for item in minibatch]
        arrays: dict[str, np.ndarray] = {
            "random": self._random,
            "lengths": np.array([item.trajectory.num_tokens for item in flat]),
            "minibatch_sizes": np.array([len(minibatch) for minibatch in items]),
            **{name: np.array([getattr(item.row, name) for item in flat]) for name in ExperienceRow.__annotations__},
        }
        columns: dict[str, list[np.ndarray]] = {
            "token_ids": [item.trajectory.token_ids for item in flat],
            "loss_mask": [item.trajectory.loss_mask for item in flat],
            "behavior_logprobs": [item.trajectory.behavior_logprobs for item in flat],
        }
        if flat and flat[0].ref_logprobs is not None:
            columns["ref_logprobs"] = [item.ref_logprobs for item in flat if item.ref_logprobs is not None]
        if flat and flat[0].estimate is not None:
            for name in ESTIMATES:
                columns[name] = [getattr(item.estimate, name) for item in flat]
        write_arrays(folder, rank, arrays | {key: np.concatenate(parts) for key, parts in columns.items() if parts})

    def dump_record(self, folder: Path, setup: PolicySetup, batch: RankBatch, record: StepRecord) -> None:
        """Write what is the same for all ranks, after every rank has written its arrays."""
        write_record(
            folder,
            {
                "num_ranks": setup.learner.num_workers,
                "setup": asdict(setup),
                "num_tokens": batch.num_tokens,
                "coefficients": asdict(batch.coefficients),
                "policy_version": batch.policy_version,
                "computed": asdict(record),
                "machine": machine(torch.device(self._engine.device)),
            },
        )


def machine(device: torch.device) -> dict[str, Any]:
    """Return what decides how a sum of floats is rounded: device, instructions, threads, PyTorch."""
    return {
        "device": device.type,
        "instructions": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
    }


def dumped_items(arrays: dict[str, np.ndarray]) -> list[list[TrainItem]]:
    """Return one rank's items of each minibatch, as they were when `StepRecorder.dump_arrays` wrote them."""
    lengths = arrays["lengths"]
    ends = np.cumsum(lengths)
    names = list(ExperienceRow.__annotations__)

    items = []
    for number in range(len(lengths)):
        own = slice(ends[number] - lengths[number], ends[number])
        ids, mask, behavior = (arrays[name][own] for name in ("token_ids", "loss_mask", "behavior_logprobs"))
        has_estimate = ESTIMATES[0] in arrays
        items.append(
            TrainItem(
                ExperienceRow(**{name: arrays[name][number].item() for name in names}),
                Trajectory(ids, mask, behavior, versions=(), finish_reason="stop", engine=0),
                arrays["ref_logprobs"][own] if "ref_logprobs" in arrays else None,
                ValueEstimate(*(arrays[name][own] for name in ESTIMATES)) if has_estimate else None,
            )
        )
    starts = np.cumsum([0, *arrays["minibatch_sizes"]])
    return [items[start:end] for start, end in itertools.pairwise(starts)]


def dumped_batch(record: dict[str, Any], num_minibatches: int) -> RankBatch:
    """Return a dump's batch of its first minibatches, without their rows: `dumped_items` has them."""
    return RankBatch(
        minibatches=((),) * num_minibatches,
        num_tokens=tuple(record["num_tokens"][:num_minibatches]),
        coefficients=Coefficients(**record["coefficients"]),
        policy_version=record["policy_version"],
        chunk_indices=(),
        has_reference=False,
        has_estimates=False,
    )
