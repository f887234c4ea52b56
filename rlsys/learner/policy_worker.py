"""The learner's side that others ask: weights, adapter, log-probabilities of what they give it, files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlsys.algorithms import kl
from rlsys.config.schema import AlgorithmConfig, LearnerConfig, WeightsConfig
from rlsys.learner.rank import NOTHING, GangWorker, TrainItem
from rlsys.models.adapters import load_adapter, peft_config, without_adapters, write_adapter
from rlsys.models.divergence import kl_sums
from rlsys.models.packing import TokenRow, token_batch
from rlsys.models.policy import DTYPES, load_policy
from rlsys.models.resolve import load_tokenizer
from rlsys.runtime.chunks import ChunkIndex, picked
from rlsys.types import ExperienceRow
from rlsys.weights.adapter import PackedAdapter, pack
from rlsys.weights.sender import WeightSender, adapter_state, full_state


@dataclass(frozen=True)
class LearnerSetup:
    """What a learner rank needs of the run's configuration."""

    learner: LearnerConfig
    algorithm: AlgorithmConfig
    weights: WeightsConfig
    model_path: str
    trust_remote_code: bool
    chat_template: str | None
    adapter: str | None  # a folder to start from
    engine_dtype: str
    temperature: float
    num_updates: int  # of the whole run, for the schedule
    passes: int  # over a step's minibatches
    old_logprobs: str
    kv_is_kept: bool  # of responses that run across a weight update
    seed: int


class PolicyWorker(GangWorker):
    """A rank that holds the policy and speaks for it; how it is trained is a subclass's matter."""

    def __init__(self, rank: int, setup: LearnerSetup) -> None:
        super().__init__(rank, setup.learner, setup.num_updates, setup.seed)
        self._setup = setup

    def open_weights(self, backend: str, host: str, port: int, world_size: int) -> None:
        """Join the weight group (rank 0)."""
        weights = self._setup.weights
        self._sender.open(backend, host, port, world_size, weights.deadline_s, weights.share_memory)

    def send_weights(self) -> None:
        """Gather and broadcast the policy."""
        with self._spans.span("broadcast"):
            self._sender.send()

    def export_weights(self) -> dict[str, Any]:
        """CUDA IPC handles of the policy, for engines on the same GPU."""
        with self._spans.span("broadcast"):
            return self._sender.export_ipc()

    def read_weights(self) -> dict[str, torch.Tensor]:
        """The whole policy on the CPU, from rank 0; the other ranks take part in the gathering."""
        return full_state(self._engine.module.hf, self._rank)

    def read_adapter(self) -> tuple[None, PackedAdapter]:
        """The policy's adapter in the engines' dtype, from rank 0 (of others one without tensors): to be called for two
        objects, the first to wait for and the second to hand on."""
        setup = self._setup
        with self._spans.span("broadcast"):
            state = adapter_state(self._engine.module.hf, self._rank, DTYPES[setup.engine_dtype])
            return None, pack(state, peft_config(setup.learner.lora, setup.model_path).to_dict())

    def probe(self, token_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Log-probabilities of given tokens [L] under the policy as it is, without temperature: [L - 1] float32, from
        the second token on; and the same without its adapter, where it has one."""
        batch = token_batch([TokenRow(token_ids, np.arange(len(token_ids)) > 0)], self._engine.module.layout)
        batch = batch.to(self._engine.device)

        def scored() -> np.ndarray:
            with torch.no_grad():
                logprobs, _ = self._engine(batch, 1.0, False)
            answer: np.ndarray = logprobs[0, 1:].float().cpu().numpy()
            return answer

        if self._setup.learner.lora.rank == 0:
            return scored(), None
        with without_adapters(self._engine.module):
            bare = scored()
        return scored(), bare

    def reference(self, numbers: Sequence[int], places: Sequence[Sequence[ChunkIndex]], *chunks: Any) -> list[Any]:
        """The policy without its adapter on the groups at `places`, of which `numbers` are this rank's.

        Returns: the divergence summed over each response, a list a group (empty where it is not in the reward); None,
        so that Ray has several answers to take apart; then a list of [L] float32 a group.
        """
        with self._spans.span("reference"), without_adapters(self._engine.module):
            groups = picked(chunks, places)
            items = [
                TrainItem(ExperienceRow(-1, number, sample, 0.0, 0.0, t.num_tokens, 0), t)
                for number in numbers
                for sample, t in enumerate(groups[number])
            ]
            found: dict[tuple[int, int], np.ndarray] = {}
            for chosen in self._microbatches(items):
                with torch.no_grad():
                    logprobs, _ = self._engine(self._batch(chosen), self._setup.temperature, False)
                rows = zip(chosen, logprobs.float().cpu().numpy(), strict=True)
                found |= {
                    (item.row.group, item.row.sample): row[: item.trajectory.num_tokens]
                    for item, row in rows
                    if item is not NOTHING  # of a rank that has fewer microbatches than others
                }
        answers = [[found[number, sample] for sample in range(len(groups[number]))] for number in numbers]
        penalty = self._setup.algorithm.kl
        if penalty.place != "reward":
            return [[], None, *answers]
        of_groups = [groups[number] for number in numbers]
        return [kl_sums(kl.registry.get(penalty.name), of_groups, answers), None, *answers]

    def save(self, folder: str) -> None:
        """Write the DeepSpeed state and, from rank 0, the policy as a Hugging Face folder `policy/`; of a policy with
        adapters `adapter/`, and `policy/` only where engines could not be given the adapter alone."""
        super().save(folder)
        hf, setup = self._engine.module.hf, self._setup
        if setup.learner.lora.rank > 0:
            adapter = adapter_state(hf, self._rank)
            if self._rank == 0:
                write_adapter(Path(folder) / "adapter", adapter, peft_config(setup.learner.lora, setup.model_path))
                self._save_tokenizer(Path(folder) / "adapter")
        if not setup.learner.lora.syncs_adapter_only:
            weights = full_state(hf, self._rank)
            if self._rank == 0:
                self._save_policy(Path(folder) / "policy", weights)

    def _save_policy(self, target: Path, weights: dict[str, torch.Tensor]) -> None:
        """A Hugging Face folder that needs no adapter."""
        self._engine.module.hf.save_pretrained(target, state_dict=weights)
        self._save_tokenizer(target)

    def _save_tokenizer(self, target: Path) -> None:
        setup = self._setup
        load_tokenizer(
            setup.model_path, trust_remote_code=setup.trust_remote_code, chat_template=setup.chat_template
        ).save_pretrained(target)

    def _module(self) -> nn.Module:
        setup = self._setup
        policy = load_policy(
            setup.model_path,
            DTYPES[setup.learner.dtype],
            packing=setup.learner.packing,
            lora=setup.learner.lora,
            trust_remote_code=setup.trust_remote_code,
        )
        if setup.adapter is not None:
            load_adapter(policy.hf, setup.adapter)
        return policy

    def _started(self) -> dict[str, Any]:
        """What rank 0 will send in a broadcast."""
        dtype, bucket_bytes = DTYPES[self._setup.engine_dtype], self._setup.weights.bucket_mib * 2**20
        self._sender = WeightSender(self._engine.module.hf, dtype, self._rank, bucket_bytes)
        return self._sender.update_info()
