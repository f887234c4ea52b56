"""Services of a policy rank to other roles: weights, adapter, log-probabilities of given tokens, files."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from rlsys.algorithms import kl
from rlsys.learner.engine import divide_at_once
from rlsys.learner.rank import Rank
from rlsys.learner.rank_batch import EMPTY_ITEM, TrainItem
from rlsys.learner.saving import Writing
from rlsys.learner.setup import PolicySetup
from rlsys.learner.shared_gpu import check_shared_gpu, free_memory
from rlsys.models.divergence import kl_sums
from rlsys.models.folder import base_dtype, base_files, write_model
from rlsys.models.lora import load_adapter, peft_config, without_adapters, write_adapter
from rlsys.models.packing import TokenRow, token_batch
from rlsys.models.parameters import exported_parameters
from rlsys.models.policy import DTYPES, load_policy
from rlsys.models.resolve import load_tokenizer
from rlsys.run_folder.layout import ADAPTER, POLICY
from rlsys.runtime.chunks import ChunkIndex, pick
from rlsys.types import ExperienceRow
from rlsys.weights.gather import adapter_state, full_state, gather_parameters
from rlsys.weights.manifest import Entry, buckets
from rlsys.weights.packed_adapter import PackedAdapter, pack_adapter
from rlsys.weights.sender import WeightSender


class PolicyServices(Rank):
    """A rank that holds the policy and serves it; `PolicyRank` adds the training.

    Under ZeRO-3 no rank has the whole policy. Every method here is a collective that all ranks must call, and most
    return the result from rank 0.
    """

    def __init__(self, rank: int, setup: PolicySetup) -> None:
        super().__init__(rank, setup.learner, setup.num_updates, setup.seed)
        self._setup = setup

    def open_weights(self, backend: str, host: str, port: int, world_size: int) -> None:
        """Join the weight group, once every worker has started; rank 0 is its sender."""
        weights = self._setup.weights
        if backend == "ipc":
            check_shared_gpu(self._setup, self._engine.module, free_memory())
        self._sender.open(backend, host, port, world_size, weights.deadline_s, weights.share_memory)

    def send_weights(self) -> list[int]:
        """Gather and broadcast the policy; returns the buckets' checksums from rank 0."""
        with self._spans.span("broadcast"):
            return self._sender.send()

    def export_weights(self) -> tuple[dict[str, Any], list[int]]:
        """Return CUDA IPC handles of the policy, for engines on the same GPU, and the buckets' checksums."""
        with self._spans.span("broadcast"):
            return self._sender.export_ipc()

    def read_weights(self, number: int) -> tuple[bool, dict[str, torch.Tensor]]:
        """Return whether this is the last part of the policy, and the part's parameters on the CPU, from rank 0.

        The other ranks return an empty dictionary. A part has at most `weights.bucket_mib`, so that the object store
        never holds the whole policy.
        """
        parameters = {parameter.name: parameter for parameter in exported_parameters(self._engine.module.hf)}
        entries = [Entry(name, p.sources[0].dtype, p.shape) for name, p in parameters.items()]
        parts = buckets(entries, self._setup.weights.bucket_mib * 2**20)
        part = {}
        for parameter in (parameters[entry.name] for entry in parts[number]):
            with gather_parameters(parameter.sources):
                if self._rank == 0:
                    part[parameter.name] = parameter.read().to("cpu", copy=True)
        return number + 1 == len(parts), part

    def read_adapter(self) -> tuple[None, PackedAdapter]:
        """Return the policy's adapter in the engines' dtype from rank 0; those of other ranks have no tensors.

        To be called with two Ray objects for the result: the first to wait for, the second to pass on to the engines
        without fetching it.
        """
        setup = self._setup
        with self._spans.span("broadcast"):
            state = adapter_state(self._engine.module.hf, self._rank, DTYPES[setup.engine_dtype])
            return None, pack_adapter(state, peft_config(setup.learner.lora, setup.model_path).to_dict())

    def probe(self, token_ids: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Return log-probabilities of given tokens under the policy as it is, at temperature 1.

        Args:
            token_ids: [L] int.

        Returns: [L - 1] float32, from the second token on; and the same without the policy's adapter, or None for a
        policy that has none.
        """
        batch = token_batch([TokenRow(token_ids, np.arange(len(token_ids)) > 0)], self._engine.module.layout)
        batch = batch.to(self._engine.device)

        def scored() -> np.ndarray:
            with torch.no_grad():
                # Engines return log-probabilities of a prompt at temperature 1, whatever they sample with.
                logprobs, _ = self._engine(batch, 1.0, False)
            found: np.ndarray = logprobs[0, 1:].float().cpu().numpy()
            return found

        if self._setup.learner.lora.rank == 0:
            return scored(), None
        with without_adapters(self._engine.module):
            bare = scored()
        return scored(), bare

    def reference(
        self, numbers: Sequence[int], chunk_indices: Sequence[Sequence[ChunkIndex]], *chunks: Any
    ) -> list[Any]:
        """Compute the reference's log-probabilities: those of the policy without its adapter.

        Args:
            numbers: this rank's groups, as indices into `chunk_indices`.
            chunk_indices: where each group's trajectories are in the chunks.
            *chunks: lists of trajectories.

        Returns: first the divergence from the sampling policy, summed over each response, one list per group (an empty
        list unless the KL belongs in the reward); then None, because Ray splits the result into objects and needs at
        least two; then per group a list of [L] float32.
        """
        # Every rank calls with groups of its own; `_microbatches` keeps their numbers of forwards equal.
        with self._spans.span("reference"), without_adapters(self._engine.module):
            groups = pick(chunks, chunk_indices)
            # Nothing here is looked up by the row's index, so all have -1; empty items are told apart by identity.
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
                    if item is not EMPTY_ITEM
                }
        nested = [[found[number, sample] for sample in range(len(groups[number]))] for number in numbers]
        penalty = self._setup.algorithm.kl
        if penalty.apply_to != "reward":
            return [[], None, *nested]
        return [kl_sums(kl.registry.get(penalty.name), [groups[n] for n in numbers], nested), None, *nested]

    def _add_model(self, folder: str, writing: Writing) -> None:
        """Add the policy on rank 0 to what is written, in a form that others load.

        That is a Hugging Face folder `policy/`; for a policy with adapters the peft folder `adapter/`, and `policy/`
        beside it only where engines cannot serve the adapter alone.
        """
        hf, setup = self._engine.module.hf, self._setup
        if setup.learner.lora.rank > 0:
            # In its own dtype unless one is asked for: the base's would round what a small learning rate has changed.
            wanted = None if setup.saved_dtype is None else DTYPES[setup.saved_dtype]
            adapter, target = adapter_state(hf, self._rank, wanted), Path(folder) / ADAPTER
            if self._rank == 0:
                write = partial(write_adapter, target, adapter, peft_config(setup.learner.lora, setup.model_path))
                writing.add(target, partial(self._write_with_tokenizer, target, write))
        if not setup.learner.lora.syncs_adapter_only:
            weights, target = full_state(hf, self._rank, self._saved_dtype), Path(folder) / POLICY
            if self._rank == 0:
                write = partial(write_model, target, hf, weights, self._saved_dtype, self._base_files)
                writing.add(target, partial(self._write_with_tokenizer, target, write))

    def _write_with_tokenizer(self, target: Path, write: Callable[[], None]) -> None:
        setup = self._setup
        write()
        load_tokenizer(
            setup.model_path, trust_remote_code=setup.trust_remote_code, chat_template=setup.chat_template
        ).save_pretrained(target)

    def _build_model(self) -> nn.Module:
        setup = self._setup
        policy = load_policy(
            setup.model_path,
            DTYPES[setup.learner.dtype],
            max_tokens=setup.max_tokens,
            packing=setup.learner.packing,
            lora=setup.learner.lora,
            trust_remote_code=setup.trust_remote_code,
            loading=divide_at_once(setup.learner, self._world_size),
        )
        if setup.adapter is not None:
            load_adapter(policy.hf, setup.adapter)
        return policy

    def _on_started(self) -> dict[str, Any]:
        """Create the sender; return the manifest of its broadcasts in the engines' form."""
        setup = self._setup
        # Looked up now: a checkpoint after hours must not depend on the hub.
        self._base_files = base_files(setup.model_path) if self._rank == 0 else []
        self._saved_dtype = (
            base_dtype(setup.model_path, trust_remote_code=setup.trust_remote_code)
            if setup.saved_dtype is None
            else DTYPES[setup.saved_dtype]
        )
        dtype, bucket_bytes = DTYPES[setup.engine_dtype], setup.weights.bucket_mib * 2**20
        self._sender = WeightSender(
            self._engine.module.hf, dtype, self._rank, bucket_bytes, is_checked=setup.weights.verify
        )
        return self._sender.update_info()
